package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/watch"
)

// TestWatchSwappedMagicLink swaps the directory to watch for a link of /proc to
// one that the daemon has open and the user cannot reach, back and forth. No
// watch ever tells of that.
func TestWatchSwappedMagicLink(t *testing.T) {
	dir := surroundings(t)
	home, secret := dir+"/home", dir+"/private/secret"
	must(t, os.Mkdir(secret, 0o700))
	must(t, os.Chmod(secret, 0o777))
	open, err := os.Open(secret)
	must(t, err)
	defer open.Close()
	must(t, os.Mkdir(home+"/way", 0o777))
	own, err := os.Open(home + "/way")
	must(t, err)
	defer own.Close()
	must(t, os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), open.Fd()), home+"/other"))
	leaktest.Check(t)

	settle := swap(home+"/way", home+"/other")
	s := &filesystemService{Config{Settings: guest.NewStore(guest.Settings{}), UserAccess: true}}
	ctx := context.WithValue(t.Context(), accountKey{}, guest.Account{UID: aliceUID, GID: aliceGID, Home: home})
	watched, refused := 0, 0
	told := false
	for i := 0; !told && (i < 2000 || i < 20_000 && (watched == 0 || refused == 0)); i++ {
		events, err := s.watchOnce(ctx, func() {
			// In both: whichever is watched tells.
			must(t, os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/secret%d", open.Fd(), i), nil, 0o644))
			must(t, os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/own%d", own.Fd(), i), nil, 0o644))
		})
		switch code := connect.CodeOf(rpcError(err)); {
		case err == nil:
			watched++
		case code == connect.CodeInvalidArgument:
			refused++
		case code != connect.CodeNotFound: // it changed between two steps
			t.Errorf("watch: %v", err)
		}
		for _, e := range events {
			if told = told || strings.HasPrefix(e.Name, "secret"); told {
				t.Errorf("told of %v", e)
			}
		}
	}
	settle()
	if watched == 0 || refused == 0 {
		t.Errorf("%d watches, %d refused", watched, refused)
	}
	t.Logf("%d watches, %d refused", watched, refused)
}

// watchOnce watches "way" as WatchDir would, until the first events after do.
func (s *filesystemService) watchOnce(ctx context.Context, do func()) ([]watch.Event, error) {
	what, opts, err := s.prepareWatch(ctx, &pb.WatchDirRequest{Path: "way"})
	if err != nil {
		return nil, err
	}
	w, err := watch.Open(what.root, opts)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	do()
	events, err := w.Next(ctx)
	if errors.Is(err, watch.ErrRootRemoved) {
		err = nil // by the next swap
	}
	return events, err
}
