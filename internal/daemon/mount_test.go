package daemon

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/reap"
)

// TestMain is the daemon's binary where a helper is started from it, and also
// one that never ends.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[0] == mountHelper && os.Args[1] == "hang" {
		_, _ = io.WriteString(os.Stdout, "hanging")
		for {
			time.Sleep(time.Hour)
		}
	}
	if code, is := Helper(os.Args); is {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// helpers makes a mounter.
func helpers(t *testing.T) mounter {
	t.Helper()
	leaktest.Check(t)
	reaper, err := reap.Open()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- reaper.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, reaper.Close()); err != nil {
			t.Error(err)
		}
	})
	return mounter{reaper}
}

// TestHelperIsKilled checks that a mount which hangs is given up in time, and
// nothing of it is left.
func TestHelperIsKilled(t *testing.T) {
	m := helpers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := m.run(ctx, "hang"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("took %v", took)
	}
}

// TestHelperReports checks that the reason of a failure reaches the caller.
// Where the kernel has an NFS client, nobody answers it on loopback.
func TestHelperReports(t *testing.T) {
	m := helpers(t)
	path := filepath.Join(t.TempDir(), "a", "b")
	v, err := guest.ParseMount("127.0.0.1:/x", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, keep := range []bool{false, true} {
		err := m.Mount(t.Context(), v, netip.MustParseAddr("127.0.0.1"), keep)
		if err == nil || !strings.Contains(err.Error(), "no NFS client") && !strings.Contains(err.Error(), "mount 127.0.0.1:/x") {
			t.Errorf("keep %v: %v", keep, err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("mount point: %v, %v", fi, err)
	}
	// Nothing of NFS is there to take away.
	if err := m.Unmount(t.Context(), v); err != nil {
		t.Errorf("unmount: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	v.Path = filepath.Join(file, "x")
	if err := m.Mount(t.Context(), v, netip.MustParseAddr("127.0.0.1"), false); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("below a file: %v", err)
	}
	if err := m.run(t.Context(), "mount"); err == nil || !strings.Contains(err.Error(), "are needed") {
		t.Errorf("too few arguments: %v", err)
	}
}

func TestHelperName(t *testing.T) {
	for _, args := range [][]string{nil, {"envd"}, {"/usr/bin/envd", mountHelper}, {"envd-mount2"}} {
		if _, is := Helper(args); is {
			t.Errorf("%q is a helper", args)
		}
	}
}

// TestHelperRefusesLinks checks that nobody in the guest decides by a link
// where a volume lands.
func TestHelperRefusesLinks(t *testing.T) {
	m := helpers(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "volume")
	if err := os.Symlink("/", path); err != nil {
		t.Fatal(err)
	}
	v, err := guest.ParseMount("127.0.0.1:/x", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, keep := range []bool{false, true} {
		if err := m.Mount(t.Context(), v, netip.MustParseAddr("127.0.0.1"), keep); err == nil || !strings.Contains(err.Error(), "is a symbolic link") {
			t.Errorf("keep %v: %v", keep, err)
		}
	}
}
