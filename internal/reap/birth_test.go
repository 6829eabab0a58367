package reap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// frozenGroup is a cgroup in which nothing runs.
func frozenGroup(t *testing.T) *os.File {
	t.Helper()
	mount := ""
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			mount = f[4]
		}
	}
	if mount == "" || os.Geteuid() != 0 {
		t.Skip("takes cgroup v2 and root")
	}
	dir := filepath.Join(mount, fmt.Sprintf("reap-test-%d", os.Getpid()))
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { eventually(t, "the group to be empty", func() bool { return unix.Rmdir(dir) == nil }) })
	must(t, os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("1"), 0))
	f, err := os.Open(dir)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestStuckExecHoldsNobodyUp checks what the standard library's fork cannot: a
// child that does not get to its program. The collector goes on, other children
// are started and reaped, and the start fails in the end, with nothing left.
func TestStuckExecHoldsNobodyUp(t *testing.T) {
	group := frozenGroup(t)
	r := open(t)
	r.patience = 3 * time.Second
	cmd := command(t, "/bin/true")
	cmd.Cgroup = group
	before := children(t)
	const many = slotCount + 2 // and one that finds no slot, then
	var stuck sync.WaitGroup
	defer stuck.Wait()
	for n := range many { // each is late at its own time
		stuck.Go(func() {
			if c, err := r.Start(cmd); !errors.Is(err, ErrStuck) {
				t.Errorf("start in a frozen group: %v, %v", c, err)
			}
		})
		eventually(t, "the child to be there", func() bool { return children(t) == before+n+1 })
	}
	runtime.GC() // would wait for threads that count as running Go code
	for code := range 10 {
		if s := status(t, start(t, r, shell(t, fmt.Sprintf("exit %d", code)))); s.Wait.ExitStatus() != code {
			t.Errorf("beside stuck ones, exit status %d instead of %d", s.Wait.ExitStatus(), code)
		}
	}
	if n := children(t); n != before+many {
		t.Errorf("%d of the stuck children are left", n-before)
	}
	stuck.Wait()
	if n := children(t); n != before {
		t.Errorf("%d children left", n-before)
	}
	if len(r.births)+len(r.children) != 0 {
		t.Errorf("%d births and %d children left registered", len(r.births), len(r.children))
	}
}

// TestStuckExecHoldsNothingOpen checks that what the daemon closes, such as a
// connection or its copy of another child's pipe, is closed, though a child is on
// its way that had it.
func TestStuckExecHoldsNothingOpen(t *testing.T) {
	group := frozenGroup(t)
	r := open(t)
	r.patience = time.Hour
	ours, others, err := os.Pipe()
	must(t, err)
	defer ours.Close()
	cmd := command(t, "/bin/true")
	cmd.Cgroup = group
	before := children(t)
	var stuck sync.WaitGroup
	stuck.Go(func() {
		if c, err := r.Start(cmd); !errors.Is(err, ErrStuck) {
			t.Errorf("start in a frozen group: %v, %v", c, err)
		}
	})
	defer stuck.Wait()
	defer r.GiveUp()
	eventually(t, "the child to be there", func() bool { return children(t) == before+1 })
	must(t, others.Close())
	must(t, ours.SetReadDeadline(time.Now().Add(patience)))
	if n, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes of a pipe that is closed, %v", n, err)
	}
}

// TestKilledBeforeItsProgram checks a child whose end comes before its program:
// it has started, and ended by that signal.
func TestKilledBeforeItsProgram(t *testing.T) {
	group := frozenGroup(t)
	r := open(t)
	cmd := command(t, "/bin/true")
	cmd.Cgroup = group
	orphans := r.Orphans()
	var c *Child
	var started sync.WaitGroup
	started.Go(func() {
		var err error
		if c, err = r.Start(cmd); err != nil {
			t.Error(err)
		}
	})
	kill := filepath.Join(group.Name(), "cgroup.kill")
	procs := filepath.Join(group.Name(), "cgroup.procs")
	defer started.Wait()
	eventually(t, "the child", func() bool { b, _ := os.ReadFile(procs); return len(b) > 0 })
	must(t, os.WriteFile(kill, []byte("1"), 0))
	started.Wait()
	if t.Failed() {
		return
	}
	if s := status(t, c); s.Wait.Signal() != unix.SIGKILL {
		t.Errorf("wait status %#x", s.Wait)
	}
	if n := r.Orphans() - orphans; n != 0 {
		t.Errorf("%d children taken for orphans", n)
	}
}

// TestStartsAtOnce checks that no exit is lost or another's, with orphans in
// between that end as well.
func TestStartsAtOnce(t *testing.T) {
	r := open(t)
	const clients, each = 16, 40
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for i := range each {
				code := (client*each + i) % 200
				cmd := shell(t, fmt.Sprintf("(true &) ; exit %d", code))
				c, err := r.Start(cmd)
				if err != nil {
					t.Error(err)
					return
				}
				if got := status(t, c).Wait.ExitStatus(); got != code {
					t.Errorf("exit status %d instead of %d", got, code)
				}
			}
		})
	}
	wg.Wait()
	if len(r.births)+len(r.children) != 0 {
		t.Errorf("%d births and %d children left registered", len(r.births), len(r.children))
	}
}

// TestFileLimit checks that a child has the limit on open files that the daemon
// was started with: the runtime raises the daemon's own.
func TestFileLimit(t *testing.T) {
	r := open(t)
	exe, err := os.Executable()
	must(t, err)
	for _, way := range []string{"limit", "limit by forkexec"} {
		cmd := shell(t, `ulimit -S -n 128; ulimit -H -n 4096; exec "$0"`)
		cmd.Args = append(cmd.Args, exe)
		cmd.Env = append(cmd.Env, helperEnv+"="+way, promptExit)
		got := strings.Fields(output(t, r, cmd))
		if len(got) != 3 || got[0] == "128" || got[1] != "128" || got[2] != "4096" {
			t.Errorf("%s: the daemon's limit, then the child's two: %q", way, got)
		}
	}
}

// TestForkExec checks what does without clone3: all the same comes out.
func TestForkExec(t *testing.T) {
	r := open(t)
	r.old.Store(true)
	own := protect(t)
	cmd := shell(t, `cat /proc/self/oom_score_adj; while read k v; do case $k in Uid:|Gid:|Groups:|SigBlk:) echo $k $v;; esac; done </proc/self/status; exec ls /proc/self/fd`)
	cmd.User = Credential{UID: 1234, GID: 1235, Groups: []uint32{7}}
	cmd.Path, cmd.Args[0] = "/bin/sh", "sh"
	got := strings.Join(strings.Fields(output(t, r, cmd)), " ")
	want := "100 Uid: 1234 1234 1234 1234 Gid: 1235 1235 1235 1235 Groups: 7 SigBlk: 0000000000000000 0 1 2 3"
	if got != want {
		t.Errorf("child is\n%s, want\n%s", got, want)
	}
	if b, _ := os.ReadFile(scoreFile); strings.TrimSpace(string(b)) != own {
		t.Errorf("the daemon's own score is %q after the start", b)
	}
	if c, err := r.Start(command(t, "/nonexistent")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such program: %v, %v", c, err)
	}
}

// TestKernelLacksACall checks that a kernel that refuses a call that a start
// takes is asked once.
func TestKernelLacksACall(t *testing.T) {
	r := open(t)
	exe, err := os.Executable()
	must(t, err)
	for part := range refused {
		t.Run(part, func(t *testing.T) {
			cmd := command(t, exe)
			cmd.Env = append(cmd.Env, helperEnv+"="+part, promptExit)
			if got := output(t, r, cmd); got != "7 true 0" {
				t.Errorf("exit status, whether it is known then, and orphans: %q", got)
			}
		})
	}
}
