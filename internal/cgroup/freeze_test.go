package cgroup

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// frozen tells what the kernel says of a group.
func frozen(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	must(t, err)
	return strings.Contains(string(b), "frozen 1")
}

// Every command stops, with what it started, and goes on with the thaw. Groups
// of another daemon are not ours to stop.
func TestFreezeAndThaw(t *testing.T) {
	h := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if got := h.Freeze(ctx); got != (Frozen{}) {
		t.Errorf("with nothing there: %+v", got)
	}
	other := filepath.Join(h.classDir(User), "1-1") // process 1 lives
	must(t, os.Mkdir(other, 0o755))
	defer func() { must(t, unix.Rmdir(other)) }()
	groups := []*Group{create(t, h), create(t, h)}
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	script := `(setsid sh -c 'read x <` + fifo + `' & wait)`
	first, second := child(t, groups[0], script), child(t, groups[1], script)
	for _, g := range groups {
		eventually(t, "the tree to grow", func() bool { return procs(t, g) >= 2 })
	}

	if got := h.Freeze(ctx); got != (Frozen{Groups: 2, Frozen: 2}) {
		t.Errorf("freeze: %+v", got)
	}
	for _, g := range groups {
		if !frozen(t, g.path) {
			t.Errorf("%s runs", g.path)
		}
	}
	if frozen(t, other) {
		t.Error("another daemon's group is frozen")
	}
	must(t, h.Thaw())
	for _, g := range groups {
		eventually(t, "the thaw", func() bool { return !frozen(t, g.path) })
	}
	// They run: what they wait for ends them.
	w, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	defer w.Close()
	_, err = w.WriteString("one\ntwo\n")
	must(t, err)
	must(t, first.Wait())
	must(t, second.Wait())
	for _, g := range groups {
		wait(t, "the group to be gone", release(g))
	}
}

// One that does not stop in time is reported as running. A budget of nothing is
// over before the kernel can say anything.
func TestFreezeBudget(t *testing.T) {
	h := open(t)
	g := create(t, h)
	cmd := child(t, g, "sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := h.Freeze(ctx); got.Groups != 1 || got.Failed != 0 || got.Frozen > 1 {
		t.Errorf("freeze: %+v", got)
	}
	must(t, h.Thaw())
	must(t, g.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", release(g))
}

// What a daemon that died had frozen runs again with the next one.
func TestOpenThaws(t *testing.T) {
	dir := root(t)
	h, err := Open(dir)
	must(t, err)
	run(t, h)
	g := create(t, h)
	cmd := child(t, g, "sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if got := h.Freeze(ctx); got.Frozen != 1 {
		t.Fatalf("freeze: %+v", got)
	}
	next, err := Open(dir)
	must(t, err)
	eventually(t, "the thaw", func() bool { return !frozen(t, g.path) })
	must(t, next.events.Close())
	must(t, g.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", release(g))
}
