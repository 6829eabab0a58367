package reap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// One waiter: no exit code is lost or mixed up, however many children end at
// once, and whatever orphans end among them.
func TestExitCodesAmongOrphans(t *testing.T) {
	const workers, rounds = 16, 25
	r := open(t)
	before := r.Orphans()
	var wg sync.WaitGroup
	for range workers {
		// Each command's subshell outlives it and becomes our orphan.
		orphaning := shell(t, "")
		plain := shell(t, "")
		wg.Go(func() {
			for i := range rounds {
				code := rand.IntN(256)
				cmd := plain
				script := "exit " + strconv.Itoa(code)
				if i%2 == 0 {
					cmd = orphaning
					script = "( : | : ) & " + script
				}
				cmd.Args = []string{"sh", "-c", script}
				c, err := r.Start(cmd)
				if err != nil {
					t.Error(err)
					return
				}
				if s := c.Status(); !s.Wait.Exited() || s.Wait.ExitStatus() != code {
					t.Errorf("wait status %#x, want exit code %d", s.Wait, code)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	eventually(t, "the orphans to be reaped", func() bool { return children(t) == 0 })
	if r.Orphans() == before {
		t.Error("there were no orphans to mix up")
	}
	t.Logf("%d children, %d orphans", workers*rounds, r.Orphans()-before)
}

// A child that has exited before Start returns is reported all the same.
func TestExitBeforeStartReturns(t *testing.T) {
	r := open(t)
	cmd := command(t, "/bin/true")
	for range 200 {
		// The sweep races with the registration on purpose: ring its bell.
		r.doorbell <- unix.SIGCHLD
		c := start(t, r, cmd)
		if s := status(t, c); s.Wait != 0 {
			t.Fatalf("wait status %#x", s.Wait)
		}
	}
	if len(r.children) != 0 {
		t.Errorf("%d children left registered", len(r.children))
	}
}

func TestExitBySignal(t *testing.T) {
	r := open(t)
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			c := start(t, r, command(t, "/bin/sleep", "60"))
			must(t, c.Signal(sig))
			if s := status(t, c); !s.Wait.Signaled() || s.Wait.Signal() != sig {
				t.Errorf("wait status %#x, want %v", s.Wait, sig)
			}
		})
	}
}

// Stopping is not an end.
func TestStoppedChildIsNotReported(t *testing.T) {
	r := open(t)
	c := start(t, r, command(t, "/bin/sleep", "60"))
	must(t, c.Signal(unix.SIGSTOP))
	eventually(t, "the stop", func() bool { return stateOf(t, c.Pid()) == "T" })
	r.Reap()
	select {
	case <-c.Done():
		t.Error("a stopped child was reported")
	default:
	}
	must(t, c.Signal(unix.SIGKILL))
	status(t, c)
}

func stateOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]
}

// A pid is never kept to be signalled later: the child's number given to
// another process does not lead a signal there.
func TestSignalAfterPidReuse(t *testing.T) {
	r := open(t)
	first := start(t, r, command(t, "/bin/true"))
	status(t, first)
	second := start(t, r, command(t, "/bin/sleep", "60"))
	first.pid = second.pid // as the kernel might have it
	if err := first.Signal(unix.SIGKILL); !errors.Is(err, ErrFinished) {
		t.Errorf("signal to a finished child: %v, want %v", err, ErrFinished)
	}
	if gone(second.Pid()) {
		t.Error("the signal hit another process")
	}
	must(t, second.Signal(unix.SIGKILL))
	if s := status(t, second); s.Wait.Signal() != unix.SIGKILL {
		t.Errorf("wait status %#x", s.Wait)
	}
}

// Signal and the end race: the answer is one or the other, never a stray error.
func TestSignalWhileExiting(t *testing.T) {
	r := open(t)
	cmd := command(t, "/bin/true")
	for range 100 {
		c := start(t, r, cmd)
		for err := error(nil); !errors.Is(err, ErrFinished); {
			if err = c.Signal(unix.SIGCONT); err != nil && !errors.Is(err, ErrFinished) && !errors.Is(err, unix.ESRCH) {
				t.Fatal(err)
			}
		}
		status(t, c)
	}
}

func TestUsage(t *testing.T) {
	r := open(t)
	c := start(t, r, shell(t, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"))
	s := status(t, c)
	if s.User+s.System <= 0 || s.User+s.System > patience {
		t.Errorf("processor time %v and %v", s.User, s.System)
	}
	if s.PeakRSS < 1<<20 {
		t.Errorf("peak memory %d", s.PeakRSS)
	}
}

// Two waiters in one process would steal each other's children.
func TestOneReaperAtATime(t *testing.T) {
	open(t)
	if r, err := Open(); err == nil {
		_ = r.Close()
		t.Error("a second reaper was opened")
	}
}

// What exits while Run is ending is reported still.
func TestRunReapsOnceMoreAtItsEnd(t *testing.T) {
	r := open(t)
	var children []*Child
	cmd := command(t, "/bin/true")
	for range 20 {
		children = append(children, start(t, r, cmd))
	}
	began := time.Now()
	for _, c := range children {
		status(t, c)
	}
	if d := time.Since(began); d > patience/2 {
		t.Errorf("took %v", d)
	}
}
