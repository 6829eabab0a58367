package cgroup

import (
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// leafCount counts the directories of leaves.
func leafCount(t *testing.T, h *Hierarchy, c Class) (n int) {
	t.Helper()
	entries, err := os.ReadDir(h.classDir(c))
	must(t, err)
	for _, e := range entries {
		if e.IsDir() {
			n++
		}
	}
	return n
}

// The end of a command makes a leaf ahead, and the next command gets that one.
func TestSpareIsMadeAndTaken(t *testing.T) {
	h := open(t)
	if n := leafCount(t, h, User); n != 0 {
		t.Errorf("%d leaves before the first command", n)
	}
	first := create(t, h)
	wait(t, "the group to be gone", release(first))
	if exists(first.path) || leafCount(t, h, User) != 1 {
		t.Fatalf("%d leaves after the first command; its own is there: %v", leafCount(t, h, User), exists(first.path))
	}
	second := create(t, h)
	if leafCount(t, h, User) != 1 || !exists(second.path) {
		t.Error("the second command did not get what was made ahead")
	}
	if n := leafCount(t, h, PTY); n != 0 {
		t.Errorf("%d leaves of the other class", n)
	}
	must(t, child(t, second, "exit 0").Wait())
	wait(t, "the group to be gone", release(second))
}

// However many commands end at once, few leaves are made ahead.
func TestSparesAreFew(t *testing.T) {
	h := open(t)
	var groups []*Group
	for range 20 {
		groups = append(groups, create(t, h))
	}
	var all sync.WaitGroup
	for _, g := range groups {
		all.Add(1)
		g.Release(all.Done)
	}
	all.Wait()
	if n := leafCount(t, h, User); n == 0 || n > spareGroups {
		t.Errorf("%d leaves made ahead, want 1 to %d", n, spareGroups)
	}
}

// After a burst nothing is kept for the next command, which starts all the same.
func TestTrimSpares(t *testing.T) {
	h := open(t)
	wait(t, "the group to be gone", release(create(t, h)))
	h.Trim()
	if n := leafCount(t, h, User); n != 0 {
		t.Errorf("%d leaves left", n)
	}
	g := create(t, h)
	must(t, child(t, g, "exit 0").Wait())
	wait(t, "the group to be gone", release(g))
}

// Trim does not leave the groups of commands that have just ended for later.
func TestTrimWhatIsReleased(t *testing.T) {
	h := open(t)
	for range 20 { // the timer may come first
		gone := release(create(t, h))
		h.Trim()
		select {
		case <-gone:
		default:
			t.Fatal("a released group is left")
		}
		if n := leafCount(t, h, User); n != 0 {
			t.Fatalf("%d leaves left", n)
		}
	}
}

// What no command got leaves nothing, and nothing is made for a next one.
func TestDiscardMakesNoSpare(t *testing.T) {
	h := open(t)
	create(t, h).Discard()
	time.Sleep(2 * tidyPause)
	if n := leafCount(t, h, User); n != 0 {
		t.Errorf("%d leaves left", n)
	}
}

// A leaf made ahead into which somebody put a process goes when that has ended.
func TestTrimSpareThatSomebodyUses(t *testing.T) {
	h := open(t)
	wait(t, "the group to be gone", release(create(t, h)))
	h.mu.Lock()
	spare := h.spares[User][0]
	h.mu.Unlock()
	cmd := child(t, spare, "exec sleep 60")
	h.Trim()
	if !exists(spare.path) {
		t.Fatal("a group with a process is gone")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // an error here is the kill
	for end := time.Now().Add(patience); exists(spare.path); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the group is left")
		}
	}
}

// Who removes a leaf that was made ahead does no harm to the next command.
func TestSpareThatSomebodyRemoved(t *testing.T) {
	h := open(t)
	wait(t, "the group to be gone", release(create(t, h)))
	h.mu.Lock()
	spare := h.spares[User][0]
	h.mu.Unlock()
	must(t, unix.Rmdir(spare.path))
	g := create(t, h)
	if g.path == spare.path || !exists(g.path) {
		t.Errorf("got %s, of which somebody removed %s", g.path, spare.path)
	}
	must(t, child(t, g, "exit 0").Wait())
	wait(t, "the group to be gone", release(g))
}

// After Close nothing is made ahead, by the end of a command that outlived it.
func TestNoSpareAfterClose(t *testing.T) {
	leaktest.Check(t)
	h, err := Open(root(t))
	must(t, err)
	wait(t, "the group to be gone", release(create(t, h)))
	late := create(t, h)
	must(t, h.Close())
	wait(t, "the group to be gone", release(late))
	if _, err := os.Stat(h.dir); err == nil {
		t.Error("something is left")
	}
}
