package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

// ownBinary passes over a test of the command line when no binary was built.
func ownBinary(t *testing.T) {
	t.Helper()
	if program == "" {
		t.Skip("the daemon is not ours to start")
	}
}

func TestFlagsVersion(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	for flag, want := range map[string]string{
		"--version": "0.9.0\n", "-version": "0.9.0\n", "--commit": "0123abc\n", "-commit": "0123abc\n",
	} {
		var errOut bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program, flag)
		cmd.Stderr = &errOut
		if out, err := cmd.Output(); err != nil || string(out) != want || errOut.Len() > 0 {
			t.Errorf("%s: %v, prints %q and %q", flag, err, out, &errOut)
		}
	}
}

func TestFlagsWrong(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	for _, args := range [][]string{{"--nothing"}, {"argument"}, {"--port", "x"}, {"--port", "99999", "--isnotfc"}} {
		out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
		exit := (*exec.ExitError)(nil)
		if !errors.As(err, &exit) || exit.ExitCode() <= 0 || len(out) == 0 {
			t.Errorf("%v: %v, prints %q", args, err, out)
		}
	}
}

// TestFlagsCommand checks the start-up command, and both kinds of dashes.
func TestFlagsCommand(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	for _, flags := range [][]string{
		{"--cmd", "echo $USER in $PWD; exit 3"}, {"-cmd=echo $USER in $PWD; exit 3"},
	} {
		d := &daemon{name: "flags"}
		if err := d.start(flags...); err != nil {
			t.Fatal(err)
		}
		c := &call{t: t, d: d, kind: "connect-proto-h2c", caller: newConnect(d, http2())}
		// The daemon answers before it starts the command.
		for ctx := bounded(t); len(c.list(ctx, true)) == 0; {
			time.Sleep(5 * time.Millisecond)
		}
		f := c.attach(bounded(t), &pb.ConnectRequest{Process: tag("init-cmd"), Offset: proto.Uint64(0)})
		if f.exit(3); !strings.HasSuffix(string(f.stdout), "root in /root\n") {
			t.Errorf("stdout %q stderr %q", f.stdout, f.stderr)
		}
		if err := d.stop(); err != nil {
			t.Errorf("%v\n%s", err, d.log)
		}
	}
}

// TestFlagsOutputTotal checks that what ended commands were started with is within
// that limit as well: a listing then names the command alone, and how it ended.
func TestFlagsOutputTotal(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	d := &daemon{name: "total"}
	if err := d.start("--output-total", "200000"); err != nil {
		t.Fatal(err)
	}
	c := &call{t: t, d: d, kind: "connect-proto-h2c", caller: newConnect(d, http2())}
	ctx := bounded(t)
	const commands = 5
	for i := range commands {
		req := sh("exit 3", strings.Repeat("x", 60_000))
		req.Tag = proto.String(fmt.Sprint(i))
		c.start(ctx, req).exit(3)
	}
	var whole []string
	list := c.list(ctx, true)
	for _, p := range list {
		if p.Config.Cmd != sh("").Process.Cmd || p.End.GetExitCode() != 3 {
			t.Errorf("listed: %v", p)
		}
		if len(p.Config.Args) > 0 {
			whole = append(whole, p.GetTag())
		}
	}
	slices.Sort(whole)
	if len(list) != commands || !slices.Equal(whole, []string{"2", "3", "4"}) {
		t.Errorf("%d listed, whole are %v", len(list), whole)
	}
	if err := d.stop(); err != nil {
		t.Errorf("%v\n%s", err, d.log)
	}
}

// TestShutdown checks that SIGTERM ends commands and streams in order.
func TestShutdown(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			d := &daemon{name: "shutdown"}
			if err := d.start(); err != nil {
				t.Fatal(err)
			}
			c := &call{t: t, d: d, kind: kind.name, caller: kind.make(d)}
			f := c.start(bounded(t), sh("trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done"))
			stubborn := c.start(bounded(t), sh("trap '' TERM; echo ready; while :; do sleep 0.05; done"))
			f.until("ready")
			stubborn.until("ready")
			stopped := make(chan error, 1)
			go func() { stopped <- d.stop() }()
			if f.exit(4); string(f.stdout) != "ready\nbye\n" {
				t.Errorf("stdout %q", f.stdout)
			}
			if stubborn.exit(-1); stubborn.end.Status != "signal: killed" {
				t.Errorf("end %v", stubborn.end)
			}
			if err := <-stopped; err != nil {
				t.Errorf("%v\n%s", err, d.log)
			}
		})
	}
}

// TestShutdownWaitsForReaders checks that a reader that is behind when the
// daemon is told to end gets all output of a command that has ended, and its
// end.
func TestShutdownWaitsForReaders(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	d := &daemon{name: "behind"}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	c := &call{t: t, d: d, kind: "raw", caller: &rawCaller{addr: d.addr(), readBuffer: 32 << 10}}
	// More than is under way with so small a buffer, and within the window.
	const size = 900_000
	f := c.start(bounded(t), sh(fmt.Sprintf("head -c %d /dev/zero; exit 3", size)))
	for ctx := bounded(t); len(c.list(ctx, false)) > 0; {
		time.Sleep(5 * time.Millisecond)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- d.stop() }()
	for { // until it refuses: then it has told requests to end
		other, err := net.Dial("tcp", d.addr())
		if err != nil {
			break
		}
		_ = other.Close()
	}
	if f.exit(3); len(f.stdout) != size {
		t.Errorf("%d bytes", len(f.stdout))
	}
	if err := <-stopped; err != nil {
		t.Errorf("%v\n%s", err, d.log)
	}
}

// TestMachineLog checks that the log is JSON inside a microVM.
func TestMachineLog(t *testing.T) {
	t.Parallel()
	ownBinary(t)
	out, err := exec.CommandContext(t.Context(), program, "--port", "99999", "--cgroup-root", os.DevNull).CombinedOutput()
	if err == nil {
		t.Fatal("port 99999 was bound")
	}
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "{") {
			t.Errorf("log line %q", line)
		}
	}
}
