package wire

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/process"
)

func size(cols, rows uint32) *pb.PTY {
	return &pb.PTY{Size: &pb.PTY_Size{Cols: cols, Rows: rows}}
}

func onTerminal(req *pb.StartRequest, cols, rows uint32) *pb.StartRequest {
	req.Pty = size(cols, rows)
	return req
}

func TestTerminal(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, onTerminal(sh(`stty size; echo "term $TERM"; tty; echo err >&2; exit 6`), 100, 30))
		f.exit(6)
		text := string(f.pty)
		for _, want := range []string{"30 100\r\n", "term xterm-256color\r\n", "/dev/pts/", "err\r\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not in %q", want, text)
			}
		}
		if len(f.stdout)+len(f.stderr) > 0 {
			t.Errorf("stdout %q stderr %q", f.stdout, f.stderr)
		}
		for _, d := range f.chunks {
			if len(d.GetPty()) > 16<<10 {
				t.Errorf("chunk of %d bytes", len(d.GetPty()))
			}
		}
	})
}

func TestTerminalResize(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, onTerminal(sh(`trap 'stty size' WINCH; echo ready; while :; do read x && echo "got $x"; done`), 80, 24))
		f.until("ready")
		update := func(p *pb.PTY) error {
			return c.unary(ctx, methodUpdate, &pb.UpdateRequest{Process: pid(f.pid), Pty: p}, &pb.UpdateResponse{})
		}
		c.must(update(size(132, 43)))
		// The shell runs the trap when its read is over.
		c.must(c.sendTerminal(ctx, pid(f.pid), "line\n"))
		f.until("43 132")
		c.must(update(nil))
		c.wantCode(update(size(1<<16, 1)), connect.CodeInvalidArgument)
		c.must(c.signal(ctx, pid(f.pid), 9))
		f.exit(-1)
		c.wantCode(update(size(1, 1)), connect.CodeNotFound)
	})
}

// TestTerminalControl checks that the terminal is the controlling one: keys
// become signals, and 0x04 is the end of input.
func TestTerminalControl(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, onTerminal(sh(`stop=; trap 'stop=1' INT; stty noflsh; echo ready
			while [ -z "$stop" ]; do sleep 0.05; done; echo interrupted; cat; exit 8`), 80, 24))
		f.until("ready")
		c.must(c.sendTerminal(ctx, pid(f.pid), "\x03"))
		f.until("interrupted")
		c.must(c.sendTerminal(ctx, pid(f.pid), "echoed\n"))
		f.until("echoed\r\nechoed\r\n")
		c.must(c.sendTerminal(ctx, pid(f.pid), "\x04"))
		f.exit(8)
	})
}

// TestTerminalJobControl checks what an interactive shell says.
func TestTerminalJobControl(t *testing.T) {
	each(t, "sdk-json-http1", func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, onTerminal(&pb.StartRequest{Process: &pb.ProcessConfig{
			Cmd: "/bin/bash", Args: []string{"-il"}, Envs: map[string]string{"PS1": "$ ", "HOME": "/nonexistent"},
		}}, 80, 24))
		c.must(c.sendTerminal(ctx, pid(f.pid), "sleep 1000 & echo jobs=$(jobs -p | wc -l)\n"))
		f.until("jobs=1\r\n")
		c.must(c.sendTerminal(ctx, pid(f.pid), "kill %1; wait; fg; exit 11\n"))
		f.exit(11)
		for _, bad := range []string{"no job control", "cannot set terminal process group"} {
			if strings.Contains(string(f.pty), bad) {
				t.Errorf("the shell says %q", f.pty)
			}
		}
	})
}

func TestTerminalInputErrors(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, onTerminal(sh("echo ready; sleep 1000"), 0, 0))
		f.until("ready")
		c.wantCode(c.sendInput(ctx, pid(f.pid), []byte("x")), connect.CodeFailedPrecondition)
		c.wantCode(c.closeStdin(ctx, pid(f.pid)), connect.CodeFailedPrecondition)
		pipes := c.start(ctx, sh("echo ready; sleep 1000"))
		c.wantCode(c.sendTerminal(ctx, pid(pipes.pid), "x"), connect.CodeFailedPrecondition)
		err := c.unary(ctx, methodUpdate, &pb.UpdateRequest{Process: pid(pipes.pid), Pty: size(1, 1)}, &pb.UpdateResponse{})
		c.wantCode(err, connect.CodeFailedPrecondition)
		_, err = c.tryStart(ctx, onTerminal(sh("true"), 70000, 1))
		c.wantCode(err, connect.CodeInvalidArgument)
	})
}

// TestTerminalHangup checks that the end comes although a background child
// holds the terminal.
func TestTerminalHangup(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		f := c.start(bounded(t), onTerminal(sh("trap '' HUP; sleep 1000 & echo last; exit 2"), 80, 24))
		if f.exit(2); string(f.pty) != "last\r\n" {
			t.Errorf("pty %q", f.pty)
		}
	})
}

// TestTerminalStreamInput types into a shell through one stream.
func TestTerminalStreamInput(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, onTerminal(&pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/sh"}}, 80, 24))
		in, err := c.input(ctx)
		c.must(err)
		c.must(in.send(inputStart(pid(f.pid))))
		for _, text := range []string{"echo $((20+", "22))", "\n", "exit 12\n"} {
			c.must(in.send(inputOf(&pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte(text)}})))
		}
		c.must(in.finish())
		f.until("42\r\n").exit(12)
	})
}
