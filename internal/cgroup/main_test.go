package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// patience is how long an expected event may take on a busy machine.
const patience = 10 * time.Second

// mounts are where a cgroup v2 hierarchy may be.
var mounts = []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"}

var roots atomic.Int64

// root makes a group of the real hierarchy to be the root of one test.
func root(t testing.TB) string {
	t.Helper()
	for _, dir := range mounts {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir = filepath.Join(dir, fmt.Sprintf("envd-cgroup-test-%d-%d", os.Getpid(), roots.Add(1)))
		must(t, os.Mkdir(dir, 0o755))
		t.Cleanup(func() {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				t.Errorf("the hierarchy left something: %v", err)
			}
		})
		return dir
	}
	t.Fatalf("no cgroup v2 in %q", mounts)
	return ""
}

// open makes a hierarchy that runs until the test ends and leaves nothing.
func open(t testing.TB) *Hierarchy {
	t.Helper()
	leaktest.Check(t)
	h, err := Open(root(t))
	must(t, err)
	run(t, h)
	return h
}

// run runs h until the test ends, and closes it then.
func run(t testing.TB, h *Hierarchy) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		must(t, h.Close())
	})
}

func create(t testing.TB, h *Hierarchy) *Group {
	t.Helper()
	g, err := h.Create(User, Limits{})
	must(t, err)
	return g
}

// child runs a shell script in g. It is killed and waited for with the test.
func child(t testing.TB, g *Group, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Dir().Fd())}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // an error here is the kill
	})
	return cmd
}

// release gives g up. The channel is closed when it is gone, once.
func release(g *Group) <-chan struct{} {
	gone := make(chan struct{})
	g.Release(func() { close(gone) })
	return gone
}

// wait expects a channel to be closed.
func wait(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited for %s", what)
	}
}

// procs counts the processes of g.
func procs(t testing.TB, g *Group) int {
	t.Helper()
	b, err := g.read("cgroup.procs")
	must(t, err)
	return len(strings.Fields(b))
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// watches counts the inotify watches of h.
func watches(t testing.TB, h *Hierarchy) int {
	t.Helper()
	n := 0
	conn, err := h.events.SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) {
		b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(fd)))
		must(t, err)
		n = strings.Count(string(b), "inotify wd:")
	}))
	return n
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
