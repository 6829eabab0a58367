package process

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// exitLimit is how late the end may be after the leader's when a descendant
// holds the output, from the contract; the rest is for a busy machine.
const exitLimit = 200*time.Millisecond + 300*time.Millisecond

func TestExitCodes(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 15 {
					code := rand.IntN(256)
					p, c, err := r.table.Start(spec("sh", "-c", fmt.Sprintf("echo %d; ( : & ) ; exit %d", code, code)))
					if err != nil {
						t.Error(err)
						return
					}
					rd := newReader(t, c)
					out, exit := rd.all()
					rd.close()
					if exit.Code() != code || out != fmt.Sprintln(code) || !exit.Exited() {
						t.Errorf("ended with %v after %q, want code %d", exit, out, code)
					}
					if p.Exit() == nil || p.Exit().Code() != code {
						t.Errorf("process says %v", p.Exit())
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestExitTexts(t *testing.T) {
	for wait, want := range map[unix.WaitStatus]string{
		0: "exit status 0", 255 << 8: "exit status 255", 9: "signal: killed", 15: "signal: terminated",
		2: "signal: interrupt", 11 | 0x80: "signal: segmentation fault (core dumped)",
	} {
		e := Exit{Wait: wait}
		if got := e.String(); got != want {
			t.Errorf("wait status %#x is %q, want %q", wait, got, want)
		}
	}
}

// No byte that was written before the exit is lost, however late the reader.
func TestExitLosesNoByte(t *testing.T) {
	const size = 700_000
	bothModes(t, func(t *testing.T, r *rig) {
		for name, s := range map[string]*Spec{
			"pipes":      shell(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo err >&2; exit 3", size)),
			"terminal":   onTerminal(shell(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; exit 3", size))),
			"background": shell(fmt.Sprintf("sleep 300 & head -c %d /dev/zero | tr '\\0' x; exit 3", size)),
			"by signal":  shell(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; kill -9 $$", size)),
		} {
			t.Run(name, func(t *testing.T) {
				p, rd := r.start(s)
				out, exit := rd.all()
				rd.close()
				if n := strings.Count(out, "x"); n != size {
					t.Errorf("%d of %d bytes", n, size)
				}
				if name != "by signal" {
					wantExit(t, exit, "exit status 3")
				}
				if name == "background" {
					must(t, p.Kill())
				}
			})
		}
	})
}

// daemonize starts a process and waits until it has let go of the output.
const daemonize = `setsid sleep 300 >/dev/null 2>&1 </dev/null &
	until [ "$(readlink /proc/$!/fd/1) $(readlink /proc/$!/fd/2)" = "/dev/null /dev/null" ]; do :; done;`

// The end is told at once when nobody holds the output, and within 200 ms when
// somebody does.
func TestExitPromptly(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		for name, tt := range map[string]struct {
			script string
			open   bool
			limit  time.Duration
		}{
			"nobody":      {"exit 1", false, exitLimit},
			"daemonized":  {daemonize + "exit 1", false, exitLimit},
			"holding":     {"sleep 300 & exit 1", true, exitLimit},
			"writing":     {"(while :; do echo more; sleep 0.01; done) & exit 1", true, exitLimit},
			"flooding":    {"yes & exit 1", true, exitLimit},
			"one of both": {"sleep 300 >/dev/null & exit 1", true, exitLimit},
		} {
			t.Run(name, func(t *testing.T) {
				p, rd := r.start(shell(tt.script))
				wait(t, "the leader's exit", p.exited)
				began := time.Now()
				_, exit := rd.all()
				late := time.Since(began)
				rd.close()
				wantExit(t, exit, "exit status 1")
				if exit.OutputOpen != tt.open {
					t.Errorf("output open is %v, want %v", exit.OutputOpen, tt.open)
				}
				if late > tt.limit {
					t.Errorf("the end came %v after the exit", late)
				}
				t.Logf("the end came %v after the exit", late)
				_ = p.Kill()
			})
		}
	})
}

// The time in which a reader holds the drain back does not count: what was
// written before the exit is all before the end.
func TestExitWhileTheReaderHoldsBack(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Window = 64 << 10
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		// More than the log and less than log and pipe: the leader can end.
		p, rd := r.start(withStdin(shell(`read line; sleep 300 & exec 2>/dev/null
			head -c 100000 /dev/zero | tr '\0' x; head -c 20000 /dev/zero | tr '\0' y; exit 2`)))
		defer rd.close()
		rd.rest()
		must(t, p.WriteStdin(t.Context(), []byte("\n")))
		wait(t, "the leader's exit", p.exited)
		time.Sleep(2 * drainLimit)
		out, exit := rd.all()
		wantExit(t, exit, "exit status 2")
		if x, y := strings.Count(out, "x"), strings.Count(out, "y"); x != 100_000 || y != 20_000 {
			t.Errorf("%d and %d bytes before the end", x, y)
		}
		must(t, p.Kill())
	})
}

// What a reader that holds back left in the pipe is read when the table is
// closed: its stream is not short.
func TestCloseWhileTheReaderHoldsBack(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Window = 64 << 10
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		p, rd := r.start(withStdin(shell("read line; head -c 120000 /dev/zero; exit 2")))
		defer rd.close()
		rd.rest()
		must(t, p.WriteStdin(t.Context(), []byte("\n")))
		wait(t, "the leader's exit", p.exited)
		if p.Exit() != nil {
			t.Error("the end came before the output was read")
		}
		r.close()
		if out, exit := rd.all(); len(out) != 120_000 || exit.Code() != 2 {
			t.Errorf("%d bytes, %v", len(out), exit)
		}
	})
}

// A reader that stopped does not keep the end from the others.
func TestExitBesideAStuckReader(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, stuck := r.start(withStdin(shell("echo one; read line; echo two; exit 5")))
		defer stuck.close()
		stuck.expect("one") // it drives now, and reads no more
		must(t, p.WriteStdin(t.Context(), []byte("\n")))
		eventually(t, "the end to be recorded", func() bool { return p.Exit() != nil })
		rd := r.attach(p, 0)
		defer rd.close()
		if out, exit := rd.all(); out != "one\ntwo\n" || exit.Code() != 5 {
			t.Errorf("%q, %v", out, exit)
		}
	})
}

// What descendants write after the end is kept for those who attach later, and
// the same end follows.
func TestLateOutput(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(shell(`trap "exit 4" USR1
(trap "echo late; exit" USR1; echo child $BASHPID; kill -USR1 $$; while :; do sleep 0.02; done) & wait`))
		child := rd.number("child")
		early, exit := rd.all()
		rd.close()
		if !exit.OutputOpen {
			t.Error("the output is not open")
		}
		must(t, unix.Kill(child, unix.SIGUSR1))
		wait(t, "settling", p.settled)
		late := r.attach(p, 0)
		defer late.close()
		if got, exit := late.all(); got != early+"late\n" || exit.Code() != 4 {
			t.Errorf("later: %q, %v", got, exit)
		}
		now := r.attach(p, Now)
		defer now.close()
		if out, exit := now.all(); out != "" || exit.Code() != 4 {
			t.Errorf("from now: %q, %v", out, exit)
		}
	})
}

// The streams are told apart, each in order, and offsets count both.
func TestStreams(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		const n = 3000
		p, rd := r.start(withStdin(helper(t, "one-byte", fmt.Sprint(n))))
		rd.until("the output", func() bool { return rd.text.Len() == n })
		must(t, p.CloseStdin())
		_, exit := rd.all()
		rd.close()
		wantExit(t, exit, "exit status 0")
		if rd.by[Stdout].String() != strings.Repeat("a", n/2) || rd.by[Stderr].String() != strings.Repeat("b", n/2) {
			t.Errorf("%d and %d bytes", rd.by[Stdout].Len(), rd.by[Stderr].Len())
		}
		if p.Written() != n {
			t.Errorf("%d written, want %d", p.Written(), n)
		}
	})
}

// A reader that does not read is cut off beside one that does, with an offset
// to go on from, and slows nobody. What is gone from there is told.
func TestSlowReaderBesideAFastOne(t *testing.T) {
	const size = 24 << 20
	bothModes(t, func(t *testing.T, r *rig) {
		p, fast := r.start(withStdin(shell(fmt.Sprintf("read line; head -c %d /dev/zero", size))))
		slow := r.attach(p, 0)
		must(t, p.WriteStdin(t.Context(), []byte("\n")))
		out, _ := fast.all()
		fast.close()
		if len(out) != size {
			t.Errorf("%d of %d bytes", len(out), size)
		}
		_, err := slow.take()
		cutOff, ok := errors.AsType[*TooSlowError](err)
		if !ok || cutOff.Offset != 0 {
			t.Fatalf("slow reader: %v", err)
		}
		slow.close()
		again := r.attach(p, cutOff.Offset)
		defer again.close()
		again.all()
		kept := int64(again.text.Len())
		if again.gap == nil || again.gap.From != 0 || kept != size-again.gap.To || kept > 1<<20 || kept < 900<<10 {
			t.Errorf("kept %d bytes after the end, gap %+v", kept, again.gap)
		}
	})
}

// A reader that is alone is never cut off, however slow, and gets every byte.
func TestSlowReaderAlone(t *testing.T) {
	const size = 4 << 20
	cfg := DefaultConfig()
	cfg.Window = 128 << 10
	bothModesWith(t, cfg, func(t *testing.T, r *rig) {
		_, rd := r.start(shell(fmt.Sprintf("head -c %d /dev/zero; exit 3", size)))
		defer rd.close()
		rd.until("all", func() bool {
			time.Sleep(2 * time.Millisecond)
			return rd.end != nil
		})
		if n := rd.text.Len(); n != size || rd.gap != nil {
			t.Errorf("%d of %d bytes, gap %v", n, size, rd.gap)
		}
		wantExit(t, rd.end, "exit status 3")
	})
}

// Without a reader the program never waits, and the newest output is kept.
func TestNoReader(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(shell("seq 1 1000000"))
		rd.close()
		eventually(t, "the end", func() bool { return p.Exit() != nil })
		late := r.attach(p, 0)
		defer late.close()
		out, _ := late.all()
		if late.gap == nil || late.gap.From != 0 || late.gap.To != p.Written()-int64(len(out)) {
			t.Errorf("gap %+v, %d written, %d kept", late.gap, p.Written(), len(out))
		}
		if !strings.HasSuffix(out, "\n999999\n1000000\n") || len(out) < 900<<10 {
			t.Errorf("kept %d bytes to %q", len(out), out[max(0, len(out)-20):])
		}
	})
}
