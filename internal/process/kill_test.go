package process

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hardTree starts what is hard to kill and prints the pids: a child in its own
// session, one forked twice, one that ignores every signal it can.
const hardTree = `
	trap "" TERM HUP INT
	setsid sleep 300 & echo session $!
	(sleep 300 & echo double $!)
	(trap "" TERM HUP INT QUIT USR1 USR2; echo ignoring $BASHPID; while :; do sleep 1; done) &
	setsid bash -c '(setsid sleep 300 & echo deep $!)' &
`

// SIGKILL takes the whole tree: what called setsid, forked twice or ignores
// signals. Nothing is left.
func TestKillTakesTheTree(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(shell(hardTree + "echo clear; wait; sleep 300"))
		defer rd.close()
		var pids []int
		for _, key := range []string{"session", "double", "ignoring", "deep"} {
			pids = append(pids, rd.number(key))
		}
		for _, pid := range append(pids, p.Pid()) {
			if !alive(pid) {
				t.Errorf("process %d does not run", pid)
			}
		}
		must(t, p.Signal(unix.SIGKILL))
		_, exit := rd.all()
		wantExit(t, exit, "signal: killed")
		for _, pid := range pids {
			eventually(t, "the tree to be gone", func() bool { return !alive(pid) })
		}
		wait(t, "settling", p.settled)
		wantError(t, p.Kill(), ErrFinished)
		wantError(t, p.Signal(unix.SIGTERM), ErrFinished)
	})
}

// Who was told of a kill finds the process ended. One tag named several: each
// kill by tag takes another one.
func TestKillIsOver(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		const many = 20
		for range many {
			_, rd := r.start(tagged(spec("sleep", "300"), "same"))
			defer rd.close()
		}
		for left := many; left > 0; left-- {
			p, err := r.table.ByTag("same")
			must(t, err)
			must(t, p.Kill())
			if running := len(r.table.List(false)); p.Running() || running != left-1 {
				t.Fatalf("%d run, expected %d", running, left-1)
			}
		}
	})
}

// A cleared environment hides from the search only with all the rest.
func TestKillFindsAClearedEnvironment(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(shell(`env -i /bin/sleep 300 & echo cleared $!
			(env -i /bin/sleep 300 & echo orphan $!); wait`))
		defer rd.close()
		pids := []int{rd.number("cleared"), rd.number("orphan")}
		must(t, p.Kill())
		rd.all()
		for _, pid := range pids {
			eventually(t, "the tree to be gone", func() bool { return !alive(pid) })
		}
	})
}

// A mark that the command was given, by a daemon above us or by its caller,
// does not hide ours.
func TestKillBesideAnotherMark(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		s := shell("(setsid sleep 300 & echo child $!)")
		s.Env = append(s.Env, markName+"=another")
		p, rd := r.start(s)
		defer rd.close()
		pid := rd.number("child")
		rd.all()
		must(t, p.Kill())
		eventually(t, "the descendant to be gone", func() bool { return !alive(pid) })
	})
}

// What sheds parent, session and environment escapes the search, as the
// documentation says, and nothing escapes a cgroup. Either way the table closes.
func TestKillAndWhatEscapesTheSearch(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(helper(t, "escape"))
		defer rd.close()
		rd.until("the pid", func() bool { return strings.HasSuffix(rd.text.String(), "\n") })
		pid := atoi(t, strings.TrimSpace(rd.text.String()))
		defer unix.Kill(pid, unix.SIGKILL)
		rd.all()
		err := p.Kill()
		if r.groups != nil {
			must(t, err)
			eventually(t, "the escaped process to be gone", func() bool { return !alive(pid) })
			return
		}
		wantError(t, err, ErrFinished)
		if !alive(pid) {
			t.Error("the documentation says that it escapes")
		}
		r.close() // though it holds the output
	})
}

// Descendants that outlive the leader are still there to be killed, also long
// after the retention.
func TestKillDescendantsAfterTheLeader(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Retain = 50 * time.Millisecond
	for _, output := range []string{"held", "released"} {
		t.Run(output, func(t *testing.T) {
			redirect := ""
			if output == "released" {
				redirect = ">/dev/null 2>&1 </dev/null"
			}
			bothModesWith(t, cfg, func(t *testing.T, r *rig) {
				p, rd := r.start(shell("(trap '' TERM HUP; exec setsid sleep 300) " + redirect + " & echo child $!; exit 4"))
				pid := rd.number("child")
				_, exit := rd.all()
				rd.close()
				wantExit(t, exit, "exit status 4")
				if open := output == "held"; exit.OutputOpen != open {
					t.Errorf("output open is %v, want %v", exit.OutputOpen, open)
				}
				time.Sleep(3 * cfg.Retain) // past its time, had it left nobody
				if got, err := r.table.ByPid(p.Pid()); got != p || err != nil {
					t.Fatalf("by pid: %v, %v", got, err)
				}
				if len(r.table.List(true)) != 1 || len(r.table.List(false)) != 0 {
					t.Errorf("lists %d and %d, want 1 and 0", len(r.table.List(true)), len(r.table.List(false)))
				}
				wantError(t, p.Signal(unix.SIGTERM), ErrFinished)
				must(t, p.Kill())
				eventually(t, "the descendant to be gone", func() bool { return !alive(pid) })
				eventually(t, "the process to be forgotten", func() bool { return len(r.table.List(true)) == 0 })
				_, err := r.table.ByPid(p.Pid())
				wantError(t, err, ErrUnknown)
			})
		})
	}
}

// In the search, a descendant that lets go of the output after the retention
// is not forgotten with it.
func TestDescendantReleasesOutputAfterRetention(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Retain = 50 * time.Millisecond
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		p, rd := r.start(withStdin(shell(`(sleep 0.3; exec >/dev/null 2>&1 </dev/null; exec sleep 300) & echo child $BASHPID $!; exit`)))
		rd.all()
		rd.close()
		time.Sleep(600 * time.Millisecond) // it has let go, and several turns are over
		must(t, p.Kill())
		eventually(t, "the process to be forgotten", func() bool { return len(r.table.List(true)) == 0 })
	})
}

// Signals but SIGKILL go to the leader alone.
func TestSignalGoesToTheLeader(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		for sig := unix.Signal(1); sig <= 31; sig++ {
			switch sig {
			case unix.SIGKILL, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT,
				unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH: // do not end it
				continue
			}
			p, rd := r.start(spec("sleep", "300"))
			must(t, p.Signal(sig))
			_, exit := rd.all()
			rd.close()
			if !exit.Wait.Signaled() || exit.Wait.Signal() != sig || exit.Code() != -1 || exit.Exited() {
				t.Errorf("signal %v: ended with %q, code %d", sig, exit, exit.Code())
			}
		}
		p, rd := r.start(shell(`trap 'echo got; exit 5' TERM; (trap "" TERM; sleep 300 & echo child $!; wait) & while :; do sleep 0.01; done`))
		defer rd.close()
		pid := rd.number("child")
		must(t, p.Signal(unix.SIGTERM))
		_, exit := rd.all()
		wantExit(t, exit, "exit status 5")
		if !alive(pid) {
			t.Error("SIGTERM took a child")
		}
		must(t, p.Kill())
	})
}

// KillAfter takes what the signal left, after the time and not before.
func TestKillAfter(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(shell(`trap 'exit 6' TERM; (trap "" TERM; exec setsid sleep 300) >/dev/null 2>&1 & echo child $!; while :; do sleep 0.01; done`))
		defer rd.close()
		pid := rd.number("child")
		const after = 300 * time.Millisecond
		began := time.Now()
		must(t, p.Signal(unix.SIGTERM))
		p.KillAfter(after)
		_, exit := rd.all()
		wantExit(t, exit, "exit status 6")
		eventually(t, "the rest of the tree to be gone", func() bool { return !alive(pid) })
		if d := time.Since(began); d < after {
			t.Errorf("killed after %v, want %v or more", d, after)
		}
	})
}

// KillAfter of what has ended by itself keeps nothing and harms nobody.
func TestKillAfterTheEnd(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Retain = 20 * time.Millisecond
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		p, rd := r.start(spec("true"))
		p.KillAfter(time.Hour)
		rd.all()
		rd.close()
		wait(t, "settling", p.settled)
		p.KillAfter(time.Hour)
		eventually(t, "the process to be forgotten", func() bool { return len(r.table.List(true)) == 0 })
		p.KillAfter(time.Hour)
		r.close() // must not wait for the timers
	})
}

// A timeout kills the tree and says so.
func TestTimeout(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		s := shell(`trap "" TERM; setsid sleep 300 & echo child $!; sleep 300`)
		s.Timeout = 150 * time.Millisecond
		began := time.Now()
		p, rd := r.start(s)
		defer rd.close()
		pid := rd.number("child")
		_, exit := rd.all()
		p.AwaitTimeout()
		if alive(pid) {
			t.Error("some of the tree are left")
		}
		if d := time.Since(began); d < s.Timeout || d > s.Timeout+patience/3 {
			t.Errorf("ended after %v, want %v", d, s.Timeout)
		}
		wantExit(t, exit, "signal: killed")
		if !exit.TimedOut {
			t.Error("not told from another kill")
		}
	})
}

// Deadlines end with the leader: who outlives it lives on.
func TestTimeoutEndsWithTheLeader(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		s := shell(`setsid sleep 300 >/dev/null 2>&1 & echo child $!`)
		s.Timeout = 200 * time.Millisecond
		p, rd := r.start(s)
		defer rd.close()
		pid := rd.number("child")
		_, exit := rd.all()
		time.Sleep(2 * s.Timeout)
		p.AwaitTimeout() // has nothing to do
		if exit.TimedOut || !alive(pid) {
			t.Errorf("timed out %v, child alive %v", exit.TimedOut, alive(pid))
		}
		must(t, p.Kill())
	})
}

// A tree that forks all the time is killed all the same.
func TestKillWhileForking(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(shell(`echo go; while :; do (sleep 0.02 & sleep 0.02) & sleep 0.005; done`))
		defer rd.close()
		rd.expect("go")
		must(t, p.Kill())
		_, exit := rd.all()
		wantExit(t, exit, "signal: killed")
		wait(t, "settling", p.settled)
	})
}
