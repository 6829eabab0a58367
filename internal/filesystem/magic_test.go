package filesystem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// secret is a directory that anybody may write to, in one of root's that keeps
// everybody out. The daemon has it open: link, a magic link of /proc, leads there.
func secret(t *testing.T, dir string) (path, link string) {
	t.Helper()
	path = dir + "/private/secret"
	must(t, os.Mkdir(path, 0o700))
	must(t, os.Chmod(path, 0o777))
	for _, name := range []string{"x", "part", "told"} {
		write(t, path+"/"+name, "secret")
		must(t, os.Chmod(path+"/"+name, 0o666))
	}
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return path, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// TestSwappedMagicLink: alice swaps a directory of hers for a magic link, back
// and forth, under running calls that take names. None ever works behind it.
func TestSwappedMagicLink(t *testing.T) {
	dir := layout(t)
	path, link := secret(t, dir)
	v := as(alice, dir+"/home", true)
	_, err := v.MakeDir("way")
	must(t, err)
	must(t, os.Symlink(link, dir+"/home/other"))
	before := describeTree(t, path)
	leaktest.Check(t)
	stop := swapAs(alice, dir+"/home/way", dir+"/home/other")
	passed, refused := 0, 0
	count := func(op string, err error) {
		switch {
		case err == nil:
			passed++
		case errors.Is(err, ErrInvalid):
			refused++
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist),
			errors.Is(err, ErrNotDirectory), errors.Is(err, ErrIsDirectory):
			// The directory changed between two steps.
		default:
			t.Errorf("%s: %v", op, err)
		}
	}
	told := false
	for i := range 500 {
		_, err := v.MakeDir(fmt.Sprintf("way/d%d/e", i%100))
		count("make directory", err)
		e, err := v.Stat("way/told")
		count("stat", err)
		told = told || err == nil && e.Size > 0
		_, err = upload(v, "mine", "alice")
		must(t, err)
		_, err = v.Move("mine", "way/in")
		count("move in", err)
		_, err = v.Move("way/x", "out")
		count("move out", err)
		count("remove", v.Remove("way/x"))
		count("remove tree", v.Remove(fmt.Sprintf("way/d%d", i%100)))
		_, _ = upload(v, "way/part", "alice")
		_, err = v.Compose("all", []string{"way/part"}, nil)
		count("compose", err)
	}
	stop()
	wantSameTree(t, describeTree(t, path), before)
	if told {
		t.Error("stat tells of what is behind the link")
	}
	if passed == 0 || refused == 0 {
		t.Errorf("%d calls passed, %d were refused", passed, refused)
	}
	t.Logf("%d passed, %d refused", passed, refused)
}

// TestMagicLinkEntry: an entry does not tell what a magic link at its own name
// leads to.
func TestMagicLinkEntry(t *testing.T) {
	dir := layout(t)
	path, link := secret(t, dir)
	must(t, unix.Setxattr(path, "user.e2b.k", []byte("secret"), 0))
	must(t, os.Symlink(link, dir+"/home/link"))
	v := as(alice, dir+"/home", true)
	e, err := v.Stat("link")
	must(t, err)
	listed, err := list(v, "", 1)
	must(t, err)
	for _, e := range append(listed, e) {
		if e.Name == "link" && (e.Type != TypeUnknown || e.Perm != 0 || e.SymlinkTarget != e.Path || e.Metadata != nil) {
			t.Errorf("%+v", e)
		}
		if strings.Contains(e.SymlinkTarget, "private/secret") {
			t.Errorf("%s is told of", e.SymlinkTarget)
		}
	}
}
