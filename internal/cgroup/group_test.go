package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel kills the tree in one step: what called setsid, forked twice,
// cleared its environment or ignores signals goes as well.
func TestKillTakesTheTree(t *testing.T) {
	h := open(t)
	for _, kill := range []struct {
		name string
		do   func(*Group) error
	}{{"cgroup.kill", (*Group).Kill}, {"each", (*Group).killEach}} {
		t.Run(kill.name, func(t *testing.T) {
			g := create(t, h)
			cmd := child(t, g, `trap "" TERM HUP INT
				setsid sh -c 'trap "" TERM; sleep 60 & sleep 60' &
				(env -i setsid sleep 60 & ) &
				sleep 60 & wait
				exec sleep 60 # if its children are killed first`)
			eventually(t, "the tree to grow", func() bool { return procs(t, g) >= 6 })
			must(t, kill.do(g))
			if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
				t.Errorf("leader ended with %v", err)
			}
			wait(t, "the group to be gone", release(g))
			if exists(g.path) {
				t.Error("the directory is still there")
			}
			if err := kill.do(g); err != nil {
				t.Errorf("kill of a group that is gone: %v", err)
			}
		})
	}
}

// A tree that forks all the time does not get away.
func TestKillWhileForking(t *testing.T) {
	h := open(t)
	g := create(t, h)
	cmd := child(t, g, `while :; do (sleep 0.01 & sleep 0.01) & done`)
	eventually(t, "the forks", func() bool { return procs(t, g) > 10 })
	must(t, g.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", release(g))
}

// Without descriptors nobody can tell that a group is empty.
func TestPopulatedWithoutDescriptors(t *testing.T) {
	h := open(t)
	g := create(t, h)
	cmd := child(t, g, "exec sleep 60")
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	populated, empty := g.Populated(), g.AwaitEmpty(20*time.Millisecond)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	if !populated || empty {
		t.Errorf("populated %v, empty %v", populated, empty)
	}
	must(t, g.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", release(g))
	if g.Populated() {
		t.Error("a group that is gone is populated")
	}
}

// A stopped or frozen tree dies, too.
func TestKillFrozen(t *testing.T) {
	h := open(t)
	g := create(t, h)
	cmd := child(t, g, "exec sleep 60")
	eventually(t, "the child", func() bool { return procs(t, g) >= 1 })
	must(t, g.write("cgroup.freeze", "1"))
	eventually(t, "the freeze", func() bool {
		b, err := g.read("cgroup.events")
		must(t, err)
		return strings.Contains(b, "frozen 1")
	})
	must(t, g.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", release(g))
}

// A released group goes when its last process does, not before.
func TestReleaseWaitsForTheLast(t *testing.T) {
	h := open(t)
	g := create(t, h)
	cmd := child(t, g, "exec sleep 60")
	other := create(t, h)
	gone := release(g)
	wait(t, "the empty group to be gone", release(other))
	select {
	case <-gone:
		t.Fatal("gone with a process inside")
	default:
	}
	if !g.Populated() {
		t.Error("not populated")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", gone)
	if g.Populated() {
		t.Error("populated after its end")
	}
}

// Watches end with their groups: the user's number of them is limited.
func TestWatchesAreGivenBack(t *testing.T) {
	h := open(t)
	for range 20 {
		g := create(t, h)
		cmd := child(t, g, "exec sleep 60")
		gone := release(g)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		wait(t, "the group to be gone", gone)
	}
	eventually(t, "the watches to be gone", func() bool { return watches(t, h) == 0 })
}

// Release and the end of the last process race: one of the two removes it.
func TestReleaseWhileEnding(t *testing.T) {
	h := open(t)
	for range 50 {
		g := create(t, h)
		cmd := child(t, g, "exit")
		gone := release(g)
		_ = cmd.Wait()
		wait(t, "the group to be gone", gone)
	}
}

// Root inside may make groups of its own below its leaf. They go with it.
func TestGroupsBelowALeaf(t *testing.T) {
	h := open(t)
	g := create(t, h)
	cmd := child(t, g, `mkdir -p `+g.path+`/sub/deep `+g.path+`/empty && echo $$ >`+g.path+`/sub/deep/cgroup.procs && exec sleep 60`)
	eventually(t, "the move", func() bool {
		b, _ := os.ReadFile(filepath.Join(g.path, "sub/deep/cgroup.procs"))
		return len(b) > 0
	})
	if !g.Populated() {
		t.Error("not populated")
	}
	gone := release(g)
	must(t, g.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", gone)
}

func TestUsage(t *testing.T) {
	h := open(t)
	g := create(t, h)
	cmd := child(t, g, "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done")
	must(t, cmd.Wait())
	u, err := g.Usage()
	if err != nil || u.User <= 0 || u.User > patience || u.OOMKills != 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	wait(t, "the group to be gone", release(g))
	if _, err := g.Usage(); !errors.Is(err, unix.EBADF) {
		t.Errorf("usage of a group that is gone: %v", err)
	}
}

// Cloning into a group that is gone fails as if there were no such command,
// so the caller asks the group.
func TestRemovedGroup(t *testing.T) {
	h := open(t)
	g := create(t, h)
	if g.Removed() {
		t.Error("removed at once")
	}
	must(t, unix.Rmdir(g.path)) // by another daemon
	if !g.Removed() {
		t.Error("the removal was not noticed")
	}
	wait(t, "the group to be gone", release(g))
}

// Kill of one group touches no other.
func TestKillIsExact(t *testing.T) {
	h := open(t)
	a, b := create(t, h), create(t, h)
	cmdA, cmdB := child(t, a, "exec sleep 60"), child(t, b, "exec sleep 60")
	must(t, a.Kill())
	_ = cmdA.Wait()
	if err := cmdB.Process.Signal(unix.Signal(0)); err != nil || !b.Populated() {
		t.Errorf("the other group's process: %v", err)
	}
	must(t, b.Kill())
	_ = cmdB.Wait()
	wait(t, "the first to be gone", release(a))
	wait(t, "the second to be gone", release(b))
}

func TestKilledPromptly(t *testing.T) {
	h := open(t)
	g := create(t, h)
	script := strings.Repeat("sleep 60 & ", 50) + "wait"
	cmd := child(t, g, script)
	eventually(t, "50 children", func() bool { return procs(t, g) == 51 })
	began := time.Now()
	must(t, g.Kill())
	_ = cmd.Wait()
	wait(t, "the group to be gone", release(g))
	t.Logf("51 processes gone after %v", time.Since(began))
}
