package wire

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

func TestStartOutputExit(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		f := c.run(bounded(t), sh("printf out; printf err >&2; exit 7"))
		if string(f.stdout) != "out" || string(f.stderr) != "err" || len(f.pty) > 0 {
			t.Errorf("stdout %q stderr %q pty %q", f.stdout, f.stderr, f.pty)
		}
		e := f.end
		if e.ExitCode != 7 || !e.Exited || e.Status != "exit status 7" || e.GetError() != "exit status 7" {
			t.Errorf("end %v", e)
		}
		if e.OutputOpen || e.OomKilled {
			t.Errorf("end %v", e)
		}
	})
}

func TestStartSuccess(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		e := c.run(bounded(t), &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "true"}}).end
		if e.ExitCode != 0 || !e.Exited || e.Status != "exit status 0" || e.Error != nil {
			t.Errorf("end %v", e)
		}
	})
}

func TestStartEndsBySignal(t *testing.T) {
	for sig, status := range map[string]string{
		"KILL": "signal: killed", "TERM": "signal: terminated", "SEGV": "signal: segmentation fault",
	} {
		t.Run(sig, func(t *testing.T) {
			all(t, func(t *testing.T, c *call) {
				e := c.run(bounded(t), sh("ulimit -c 0; kill -"+sig+" $$")).end
				if e.ExitCode != -1 || e.Exited || e.Status != status || e.GetError() != status {
					t.Errorf("end %v", e)
				}
			})
		})
	}
}

// TestOutputWhole checks order and completeness of much output.
func TestOutputWhole(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		const lines = 600_000 // 4 MB
		f := c.start(bounded(t), sh(fmt.Sprintf("seq %d; echo done >&2", lines)))
		f.exit(0)
		want := sha256.New()
		for i := range lines {
			fmt.Fprintln(want, i+1)
		}
		if got := sha256.Sum256(f.stdout); !bytes.Equal(got[:], want.Sum(nil)) {
			t.Errorf("%d bytes are not what was written", len(f.stdout))
		}
		for _, d := range f.chunks {
			if len(d.GetStdout()) > 32<<10 {
				t.Fatalf("chunk of %d bytes", len(d.GetStdout()))
			}
		}
	})
}

// TestOutputBinary checks bytes that are no text.
func TestOutputBinary(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		f := c.start(bounded(t), sh(`i=0; while [ $i -lt 256 ]; do printf "\\$(printf %o $i)"; i=$((i+1)); done`)).exit(0)
		want := make([]byte, 256)
		for i := range want {
			want[i] = byte(i)
		}
		if !bytes.Equal(f.stdout, want) {
			t.Errorf("got %q", f.stdout)
		}
	})
}

// TestExitBeforeOutputEnds checks that the exit does not wait for a background
// child that holds the output, and says that it does.
func TestExitBeforeOutputEnds(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, sh("sleep 1000 & echo last; exit 3"))
		began := time.Now()
		f.exit(3)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("the end took %v", took)
		}
		if string(f.stdout) != "last\n" {
			t.Errorf("stdout %q", f.stdout)
		}
		if c.d.cmd != nil && !f.end.OutputOpen {
			t.Error("output_open is not set")
		}
		c.must(c.signal(ctx, pid(f.pid), 9)) // the descendants that are left
		// A zombie counts as nothing left, so this comes about.
		for {
			err := c.signal(ctx, pid(f.pid), 9)
			if err != nil {
				c.wantCode(err, connect.CodeNotFound)
				break
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(dir, 0o755))
	must(os.WriteFile(dir+"/plain", []byte("text"), 0o644))
	must(os.WriteFile(dir+"/garbage", []byte("\x7fELF garbage"), 0o755))
	must(os.WriteFile(dir+"/orphan", []byte("#!/no/such/interpreter\n"), 0o755))
	must(os.Mkdir(dir+"/closed", 0o700))
	rows := []struct {
		name string
		user string
		cfg  *pb.ProcessConfig
		code connect.Code
		text string
	}{
		{"empty", "", &pb.ProcessConfig{}, connect.CodeInvalidArgument, "empty command"},
		{"no command", "", &pb.ProcessConfig{Cmd: "no-such-command"}, connect.CodeNotFound, "no such command"},
		{"no path", "", &pb.ProcessConfig{Cmd: dir + "/none"}, connect.CodeNotFound, "no such command"},
		{"no interpreter", "", &pb.ProcessConfig{Cmd: dir + "/orphan"}, connect.CodeNotFound, "interpreter"},
		{"not executable", "", &pb.ProcessConfig{Cmd: dir + "/plain"}, connect.CodePermissionDenied, "not executable"},
		{"a directory", "", &pb.ProcessConfig{Cmd: dir}, connect.CodePermissionDenied, "not executable"},
		{"bad format", "", &pb.ProcessConfig{Cmd: dir + "/garbage"}, connect.CodeInvalidArgument, "format"},
		{"missing cwd", "", &pb.ProcessConfig{Cmd: "true", Cwd: proto.String(dir + "/none")}, connect.CodeInvalidArgument, dir + "/none"},
		{"cwd a file", "", &pb.ProcessConfig{Cmd: "true", Cwd: proto.String(dir + "/plain")}, connect.CodeInvalidArgument, "not a directory"},
		{"forbidden cwd", "nobody", &pb.ProcessConfig{Cmd: "true", Cwd: proto.String("/root")}, connect.CodePermissionDenied, "cwd /root"},
		{"cwd of another", "", &pb.ProcessConfig{Cmd: "true", Cwd: proto.String("~daemon")}, connect.CodeInvalidArgument, "~daemon"},
		{"NUL in argument", "", &pb.ProcessConfig{Cmd: "true", Args: []string{"a\x00b"}}, connect.CodeInvalidArgument, "NUL"},
		{"NUL in variable", "", &pb.ProcessConfig{Cmd: "true", Envs: map[string]string{"A": "\x00"}}, connect.CodeInvalidArgument, "NUL"},
		{"bad variable", "", &pb.ProcessConfig{Cmd: "true", Envs: map[string]string{"A=B": "c"}}, connect.CodeInvalidArgument, "A=B"},
		{"too long", "", &pb.ProcessConfig{Cmd: "true", Args: []string{strings.Repeat("x", 200<<10)}}, connect.CodeInvalidArgument, "too long"},
		{"unknown user", "nosuchuser", &pb.ProcessConfig{Cmd: "true"}, connect.CodeUnauthenticated, "unknown user"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			all(t, func(t *testing.T, c *call) {
				ctx := bounded(t)
				if row.user != "" {
					ctx = as(ctx, row.user)
				}
				_, err := c.tryStart(ctx, &pb.StartRequest{Process: row.cfg})
				c.wantCode(err, row.code)
				if !strings.Contains(err.Error(), row.text) {
					t.Errorf("%q does not contain %q", err, row.text)
				}
				// Hosts take these words for an unknown process.
				if _, message, _ := strings.Cut(err.Error(), ": "); strings.Contains(message, "not found") {
					t.Errorf("%q contains \"not found\"", message)
				}
			})
		})
	}
	t.Run("no configuration", func(t *testing.T) {
		all(t, func(t *testing.T, c *call) {
			_, err := c.tryStart(bounded(t), &pb.StartRequest{})
			c.wantCode(err, connect.CodeInvalidArgument)
		})
	})
}

// TestLimits checks that limits which cannot be kept are not taken silently.
func TestLimits(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		c.d.needs(t, "process.limits")
		controllers := ""
		if c.d.cgroups != "" {
			b, err := os.ReadFile(c.d.cgroups + "/cgroup.controllers")
			c.must(err)
			controllers = string(b)
		}
		for name, l := range map[string]*pb.Limits{
			"memory": {MemoryMaxBytes: 1 << 30}, "cpu": {CpuMaxMillicores: 500}, "pids": {PidsMax: 10},
		} {
			req := &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "true"}, Limits: l}
			if strings.Contains(controllers, name) {
				c.start(bounded(t), req).exit(0)
				continue
			}
			_, err := c.tryStart(bounded(t), req)
			c.wantCode(err, connect.CodeFailedPrecondition)
		}
		// No limit at all needs nothing.
		c.start(bounded(t), &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "true"}, Limits: &pb.Limits{}}).exit(0)
	})
}

// TestTimeoutKillsTree checks that a deadline takes all that was started, and
// that only the stream that set it ends without an end event.
func TestTimeoutKillsTree(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := c.timeout(bounded(t), 1500*time.Millisecond)
		f := c.start(ctx, sh("setsid sleep 1000 & echo $!; trap '' TERM; sleep 1000"))
		f.until("\n")
		child, err := strconv.Atoi(strings.TrimSpace(string(f.stdout)))
		c.must(err)
		other := c.attach(bounded(t), &pb.ConnectRequest{Process: pid(f.pid)})
		f.rest()
		if f.end != nil {
			t.Errorf("end event %v", f.end)
		}
		c.wantCode(f.err, connect.CodeDeadlineExceeded)
		other.rest()
		if other.end.GetStatus() != "signal: killed" {
			t.Errorf("the other reader got %v, %v", other.end, other.err)
		}
		if c.d.cmd != nil {
			waitGone(t, child)
		}
	})
}

// TestTimeoutLeavesNothing checks that the tree is gone when the client hears
// of the deadline, as a client does that has none of its own.
func TestTimeoutLeavesNothing(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		if d.cmd == nil {
			return // elsewhere, there are no processes to look at
		}
		pids := filepath.Join(t.TempDir(), "pids")
		const script = "for i in 1 2 3 4 5 6 7 8; do setsid sleep 1000 & echo $!; done >$0; wait"
		body := fmt.Sprintf(`{"process":{"cmd":"sh","args":["-c",%q,%q]}}`, script, pids)
		_, text := request(t, http1(), "POST", d.base+"/process.Process/Start", string(envelope(0, []byte(body))),
			"Content-Type", "application/connect+json", "Connect-Timeout-Ms", "1500")
		if !strings.Contains(text, "deadline_exceeded") || strings.Contains(text, `"end"`) {
			t.Errorf("%q", text)
		}
		b, err := os.ReadFile(pids)
		if n := len(strings.Fields(string(b))); err != nil || n != 8 {
			t.Errorf("%d children, %v", n, err)
		}
		for _, pid := range strings.Fields(string(b)) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err == nil && !strings.Contains(string(stat), ") Z ") {
				t.Errorf("still there: %s", stat)
			}
		}
	})
}

// TestTimeoutZero checks that 0 is no bound.
func TestTimeoutZero(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		if c.kind == "grpc" {
			return // grpc-go does not send it
		}
		ctx := c.timeout(bounded(t), 0)
		c.start(ctx, sh("sleep 0.3; echo lived")).exit(0)
		c.list(ctx, false)
	})
}

// TestTimeoutOutlivesClient checks that the deadline holds although the client
// that set it is gone.
func TestTimeoutOutlivesClient(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := c.timeout(bounded(t), 1200*time.Millisecond)
		f := c.start(ctx, sh("sleep 1000"))
		f.s.close()
		other := c.attach(bounded(t), &pb.ConnectRequest{Process: pid(f.pid)})
		other.rest()
		if other.end.GetStatus() != "signal: killed" {
			t.Errorf("end %v, %v", other.end, other.err)
		}
	})
}

// TestTimeoutOfConnect checks that the deadline of a reader is not the
// process's.
func TestTimeoutOfConnect(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		f := c.start(bounded(t), sh("read x; echo lived"))
		ctx := c.timeout(bounded(t), 300*time.Millisecond)
		reader := c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid)}).rest()
		c.wantCode(reader.err, connect.CodeDeadlineExceeded)
		c.must(c.sendInput(bounded(t), pid(f.pid), []byte("\n")))
		f.exit(0)
	})
}

func TestKeepAlive(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := with(bounded(t), "Keepalive-Ping-Interval", "1")
		f := c.start(ctx, sh("sleep 3.7; echo woke"))
		reader := c.attach(ctx, &pb.ConnectRequest{Process: pid(f.pid)})
		f.exit(0)
		reader.rest()
		for _, r := range []*follow{f, reader} {
			// One less where the machine is busy with something else.
			if r.keepalives != 3 && r.keepalives != 2 {
				t.Errorf("%d keepalives in 3.7 s", r.keepalives)
			}
		}
	})
}

// TestClientGone checks that a process does not end with its client's stream.
func TestClientGone(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		f := c.start(bounded(t), sh("echo one; read x; echo two; exit 5"))
		f.until("one\n")
		f.s.close()
		// The offset of what the first stream did not read.
		again := c.attach(bounded(t), &pb.ConnectRequest{Process: pid(f.pid), Offset: proto.Uint64(4)})
		c.must(c.sendInput(bounded(t), pid(f.pid), []byte("\n")))
		if again.exit(5); string(again.stdout) != "two\n" {
			t.Errorf("stdout %q", again.stdout)
		}
	})
}

// TestManyAtOnce checks that processes do not mix their output.
func TestManyAtOnce(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		type outcome struct {
			text string
			err  error
		}
		const n = 20
		results := make([]outcome, n)
		done := make(chan struct{})
		for i := range n {
			go func() {
				defer func() { done <- struct{}{} }()
				s, err := c.stream(ctx, methodStart, sh(fmt.Sprintf("echo %d; exit %d", i, i)))
				for err == nil {
					var e *pb.ProcessEvent
					if e, err = s.next(); err != nil {
						break
					}
					results[i].text += string(e.GetData().GetStdout())
					if end := e.GetEnd(); end != nil {
						results[i].text += end.Status
					}
				}
				results[i].err = err
				if s != nil {
					s.close()
				}
			}()
		}
		for range n {
			<-done
		}
		for i, r := range results {
			if want := fmt.Sprintf("%d\nexit status %d", i, i); r.text != want || r.err != io.EOF { //nolint:errorlint // as it is
				t.Errorf("got %q, %v", r.text, r.err)
			}
		}
	})
}

// waitGone waits until a process is gone or a zombie.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is still there: %s", pid, b)
		}
	}
}
