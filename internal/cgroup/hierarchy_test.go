package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// A root that is not cgroup2 is noticed at start: every clone would fail.
func TestOpenWhatIsNoCgroup2(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	for _, root := range []string{dir, "/proc", filepath.Join(dir, "missing"), ""} {
		h, err := Open(root)
		if !errors.Is(err, ErrUnusable) {
			t.Errorf("open %q: %v, %v; want %v", root, h, err, ErrUnusable)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("open left %v", entries)
	}
}

func TestCreateBelowItsClass(t *testing.T) {
	h := open(t)
	for _, class := range []Class{PTY, User} {
		g, err := h.Create(class, Limits{})
		must(t, err)
		if dir := filepath.Base(filepath.Dir(g.path)); dir != string(class) || filepath.Base(filepath.Dir(filepath.Dir(g.path))) != "wrenn" {
			t.Errorf("group is %s", g.path)
		}
		var st unix.Stat_t
		must(t, unix.Fstat(int(g.Dir().Fd()), &st))
		if flags, err := unix.FcntlInt(g.Dir().Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v; want close-on-exec", flags, err)
		}
		wait(t, "the group to be gone", release(g))
	}
}

func TestCreateConcurrently(t *testing.T) {
	h := open(t)
	var mu sync.Mutex
	seen := make(map[string]bool)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				g, err := h.Create(User, Limits{})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[g.path] {
					t.Errorf("%s was made twice", g.path)
				}
				seen[g.path] = true
				mu.Unlock()
				release(g)
			}
		})
	}
	wg.Wait()
}

// What an earlier daemon left is removed when it is empty and passed over when
// it is not.
func TestOpenAfterAnEarlierDaemon(t *testing.T) {
	leaktest.Check(t)
	dir := root(t)
	first, err := Open(dir)
	must(t, err)
	empty, busy := create(t, first), create(t, first)
	cmd := child(t, busy, "exec sleep 60")
	must(t, first.events.Close()) // it was killed
	empty.close()
	busy.close()

	h, err := Open(dir)
	must(t, err)
	run(t, h)
	if exists(empty.path) {
		t.Error("the empty group is still there")
	}
	if !exists(busy.path) {
		t.Error("the busy group is gone")
	}
	for range 3 {
		g := create(t, h)
		if g.path == busy.path {
			t.Error("a busy group was given to another command")
		}
		release(g)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// Without the controller a limit is refused, and nothing is left.
func TestLimitsNeedTheirController(t *testing.T) {
	h := open(t)
	for name, tt := range map[string]struct {
		controller string
		limits     Limits
	}{
		"memory": {"memory", Limits{MemoryBytes: 64 << 20}},
		"cpu":    {"cpu", Limits{CPUMillicores: 500}},
		"pids":   {"pids", Limits{Pids: 10}},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := h.Create(User, tt.limits)
			if slices.Contains(h.Controllers(), tt.controller) {
				must(t, err)
				release(g)
				return
			}
			if !errors.Is(err, ErrNoController) || !strings.Contains(err.Error(), tt.controller) {
				t.Errorf("create: %v, want %v", err, ErrNoController)
			}
		})
	}
	left, err := os.ReadDir(h.classDir(User))
	must(t, err)
	for _, e := range left {
		if e.IsDir() {
			t.Errorf("left %s", e.Name())
		}
	}
}

// Close leaves what is in use and says so.
func TestCloseWithABusyGroup(t *testing.T) {
	leaktest.Check(t)
	dir := root(t)
	h, err := Open(dir)
	must(t, err)
	g := create(t, h)
	cmd := child(t, g, "exec sleep 60")
	release(g)
	if err := h.Close(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("close: %v, want %v", err, unix.EBUSY)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if err := h.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, top)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after close: %v", err)
	}
}

func TestRunEndsWithClose(t *testing.T) {
	leaktest.Check(t)
	h, err := Open(root(t))
	must(t, err)
	ended := make(chan error)
	go func() { ended <- h.Run(t.Context()) }()
	must(t, h.Close())
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

func FuzzKeyed(f *testing.F) {
	f.Add("usage_usec 1000\nuser_usec 600\nsystem_usec 400\n")
	f.Add("low 0\nhigh 0\nmax 0\noom 1\noom_kill 18446744073709551615\n")
	f.Fuzz(func(t *testing.T, text string) {
		keyed(text, func(key string, value uint64) {
			if strings.ContainsAny(key, " \n") || !strings.Contains(text, key+" ") {
				t.Errorf("key %q of %q", key, text)
			}
		})
	})
}
