package process

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (r *rig) typeText(p *Process, text string) {
	r.t.Helper()
	must(r.t, p.WriteTerminal(r.t.Context(), []byte(text)))
}

// The size is there before the program runs, and changes are told by SIGWINCH.
func TestTerminalSize(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		s := helper(t, "size")
		s.Terminal = &Size{Cols: 132, Rows: 43}
		p, rd := r.start(s)
		defer rd.close()
		rd.expect("size 132x43")
		for _, size := range []Size{{80, 24}, {200, 50}, {1, 1}} {
			must(t, p.Resize(size))
			rd.expect(fmt.Sprintf("size %dx%d", size.Cols, size.Rows))
		}
		must(t, p.Kill())
		rd.all()
		wantError(t, p.Resize(Size{1, 1}), ErrFinished)
		wantError(t, p.WriteTerminal(t.Context(), []byte("x")), ErrFinished)
	})
}

// A terminal that is closed under a change of size is that of a process that
// has ended.
func TestResizeMeetsTheEnd(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(onTerminal(spec("sleep", "300")))
		defer rd.close()
		p.pumps[0].end()
		wantError(t, p.Resize(Size{1, 1}), ErrFinished)
		_ = p.Kill() // the hang-up may have been quicker
	})
}

// The terminal is the session's controlling one, and its user's.
func TestTerminalControls(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		s := onTerminal(shell(`tty; stat -c %u $(tty); ps -o tty=,sid=,tpgid= -p $$ | tr -s ' '; echo $$; echo through >/dev/tty`))
		s.User = Credential{UID: nobody, GID: nobody}
		out, exit := r.run(s)
		lines := strings.Fields(out)
		wantExit(t, exit, "exit status 0")
		if len(lines) != 7 || !strings.HasPrefix(lines[0], "/dev/pts/") || lines[1] != fmt.Sprint(nobody) ||
			"/dev/"+lines[2] != lines[0] || lines[3] != lines[5] || lines[6] != "through" {
			t.Errorf("terminal: %q", lines)
		}
	})
}

// Ctrl-C and Ctrl-Z typed on the terminal reach the foreground group.
func TestTerminalInterrupt(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(onTerminal(helper(t, "interrupts")))
		defer rd.close()
		rd.expect("ready")
		for i := range 3 {
			r.typeText(p, "\x03")
			rd.expect(fmt.Sprint("interrupt ", i+1))
		}
		_, exit := rd.all()
		wantExit(t, exit, "exit status 3")

		q, qd := r.start(onTerminal(spec("sleep", "300")))
		defer qd.close()
		r.typeText(q, "\x03")
		_, exit = qd.all()
		wantExit(t, exit, "signal: interrupt")
	})
}

// An interactive shell has job control: it does not complain, jobs can be
// stopped, continued and interrupted, and the shell lives on.
func TestTerminalJobControl(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		s := onTerminal(spec("bash", "--norc", "--noprofile", "-i"))
		s.Env = append(s.Env, "PS1=READY> ", "HISTFILE=")
		p, rd := r.start(s)
		defer rd.close()
		rd.expect("READY> ")
		r.typeText(p, "sleep 300\n")
		// Before its exec, the shell's child ignores what is typed.
		foreground := func() bool {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", foregroundGroup(p)))
			return string(comm) == "sleep\n"
		}
		eventually(t, "the job to come to the foreground", foreground)
		r.typeText(p, "\x1a")
		rd.expect("Stopped")
		r.typeText(p, "jobs; fg\n")
		eventually(t, "the job to come back", foreground)
		r.typeText(p, "\x03")
		eventually(t, "the shell to come back", func() bool { return foregroundGroup(p) == p.Pid() })
		r.typeText(p, "echo code $?; exit 7\n")
		out, exit := rd.all()
		wantExit(t, exit, "exit status 7")
		if !strings.Contains(out, "code 130") || strings.Contains(out, "no job control") || strings.Contains(out, "cannot set terminal") {
			t.Errorf("the session: %q", out)
		}
	})
}

// foregroundGroup is the foreground process group of p's terminal.
func foregroundGroup(p *Process) int {
	p.mu.Lock()
	in := p.input
	p.mu.Unlock()
	if in == nil {
		return 0
	}
	group := 0
	if conn, err := in.file.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { group, _ = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	}
	return group
}

// "bash -ic", which agents use, neither loses its terminal nor stops.
func TestTerminalInteractiveCommand(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		s := onTerminal(spec("bash", "--norc", "-ic", "sleep 0.05; (exit 3); echo code $?"))
		out, exit := r.run(s)
		wantExit(t, exit, "exit status 0")
		if strings.TrimSpace(out) != "code 3" {
			t.Errorf("output %q", out)
		}
		plain, exit := r.run(spec("bash", "--norc", "-ic", "echo code $?"))
		wantExit(t, exit, "exit status 0")
		if !strings.Contains(plain, "code 0") {
			t.Errorf("without a terminal: %q", plain)
		}
	})
}

// The end of a terminal is told as one, not as an error.
func TestTerminalEnd(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(onTerminal(spec("cat")))
		defer rd.close()
		r.typeText(p, "line\n\x04")
		out, exit := rd.all()
		wantExit(t, exit, "exit status 0")
		if strings.Count(out, "line\r\n") != 2 { // echoed, and from cat
			t.Errorf("output %q", out)
		}
		if rd.by[Terminal].Len() != len(out) {
			t.Error("a terminal has one stream")
		}
	})
}

// A program that lets go of its terminal and comes back is not hung up.
func TestTerminalClosedByTheProgram(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		out, exit := r.run(onTerminal(helper(t, "close-tty")))
		wantExit(t, exit, "exit status 7")
		if !strings.Contains(out, "back") {
			t.Errorf("output %q", out)
		}
	})
}

// A background process that keeps the terminal does not keep the end.
func TestTerminalBackground(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(onTerminal(shell(`trap "" HUP; setsid sleep 300 & sleep 300 & echo started; exit 2`)))
		wait(t, "the leader's exit", p.exited)
		began := time.Now()
		out, exit := rd.all()
		rd.close()
		wantExit(t, exit, "exit status 2")
		if d := time.Since(began); d > exitLimit {
			t.Errorf("the end came %v after the exit", d)
		}
		if !strings.Contains(out, "started") {
			t.Errorf("output %q", out)
		}
		must(t, p.Kill())
	})
}

// Input to a terminal that nobody reads ends with its context or the process.
func TestTerminalInputBlocked(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(onTerminal(shell("stty raw -echo; echo ready; sleep 300")))
		defer rd.close()
		rd.expect("ready")
		ended := make(chan error, 1)
		go func() { ended <- p.WriteTerminal(t.Context(), make([]byte, 1<<20)) }()
		must(t, p.Resize(Size{100, 30})) // not behind the input
		must(t, p.Kill())
		wantEnd(t, ended, ErrFinished, ErrStdinClosed)
	})
}
