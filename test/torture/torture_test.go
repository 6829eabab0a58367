// Package torture runs thousands of commands through many clients of one
// daemon, with kills, lost connections and slow readers among them, and counts
// every byte, exit code and resource.
//
// The daemon runs inside the test, so that the race detector sees it and its
// goroutines and descriptors can be counted; clients talk to it over loopback.
package torture

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/daemon"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/test/cgroups"
)

const (
	clients  = 32
	commands = 20_000
	// timeLimit stops a machine too slow for all of the commands; fewer than
	// leastCommands by then is a failure.
	timeLimit     = 4 * time.Minute
	leastCommands = commands / 2
	// memoryLeft is how much more heap may be in use afterwards, in bytes.
	memoryLeft = 8 << 20
)

func TestTorture(t *testing.T) {
	leaktest.Check(t)
	root := cgroupRoot(t)
	base := startDaemon(t, root, slog.New(slog.DiscardHandler))
	sequences()
	before := heapInUse()

	var next, done atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), timeLimit)
	defer cancel()
	var wg sync.WaitGroup
	began := time.Now()
	for i := range clients {
		wg.Go(func() {
			w := newWorker(base, i)
			defer w.close()
			for next.Add(1) <= commands && ctx.Err() == nil && !t.Failed() {
				name, err := w.once(ctx)
				if err != nil && ctx.Err() == nil {
					t.Errorf("client %d, %s: %v", i, name, err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d commands in %v: %.0f/s", done.Load(), time.Since(began).Round(time.Millisecond),
		float64(done.Load())/time.Since(began).Seconds())
	if n := done.Load(); n < leastCommands && !t.Failed() {
		t.Errorf("only %d of %d commands in %v", n, commands, timeLimit)
	}
	awaitNothingLeft(t, base, root)
	if after := heapInUse(); after > before+memoryLeft {
		t.Errorf("heap in use: %d bytes before, %d after", before, after)
	}
}

// cgroupRoot makes a group to be the root of this test's daemon alone.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(cgroups.Mount(), fmt.Sprintf("envd-torture-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// retain is how long ended processes are kept: so short that nothing of them is
// left to wait for, so long that a client comes back in time on a busy machine.
const retain = 10 * time.Second

// startDaemon runs a daemon until the end of the test.
func startDaemon(t *testing.T, root string, log *slog.Logger) (base string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	output := process.DefaultConfig()
	output.Retain = retain
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, daemon.Config{
			Version: "0.9.0", Port: port, CgroupRoot: root, Output: output,
			Log: log,
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("daemon: %v", err)
		}
	})
	base = "http://127.0.0.1:" + strconv.Itoa(port)
	c := client.New(base, client.Options{HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}})
	for limit := time.Now().Add(10 * time.Second); ; {
		_, err := c.Health(t.Context())
		if err == nil {
			return base
		}
		if time.Now().After(limit) {
			t.Fatalf("daemon does not answer: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

func heapInUse() uint64 {
	runtime.GC() // pools keep what they hold through one collection
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// awaitNothingLeft waits until the daemon has forgotten all processes, and
// looks for what it should have removed.
func awaitNothingLeft(t *testing.T, base, root string) {
	t.Helper()
	w := newWorker(base, 0)
	defer w.close()
	for limit := time.Now().Add(20*time.Second + retain); ; {
		res, err := w.c.Process.List(t.Context(), connect.NewRequest(&pb.ListRequest{IncludeExited: true}))
		if err != nil {
			t.Fatal(err)
		}
		leaves, _ := filepath.Glob(filepath.Join(root, "wrenn/*/*/cgroup.procs"))
		children := childrenOfSelf()
		if len(res.Msg.Processes) == 0 && len(leaves) == 0 && children == "" {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("left: %d processes, cgroups %v, children %q", len(res.Msg.Processes), leaves, children)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func childrenOfSelf() string {
	var all []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		all = append(all, strings.Fields(string(b))...)
	}
	return strings.Join(all, " ")
}

// worker is one client with a connection of its own.
type worker struct {
	c         *client.Client
	transport *http.Transport
	rnd       *rand.Rand
}

func newWorker(base string, n int) *worker {
	w := &worker{transport: &http.Transport{}, rnd: rand.New(rand.NewPCG(uint64(n), 42))}
	if n%2 == 0 {
		w.transport.Protocols = new(http.Protocols)
		w.transport.Protocols.SetUnencryptedHTTP2(true)
	}
	w.c = client.New(base, client.Options{HTTP: &http.Client{Transport: w.transport}})
	return w
}

func (w *worker) close() { w.transport.CloseIdleConnections() }

// once runs one command of a random kind.
func (w *worker) once(ctx context.Context) (name string, err error) {
	switch n := w.rnd.IntN(100); {
	case n < 60:
		return "small output", w.small(ctx)
	case n < 75:
		return "large output", w.large(ctx)
	case n < 85:
		return "kill", w.kill(ctx)
	case n < 93:
		return "lost connection", w.lost(ctx)
	case n < 96:
		return "slow reader", w.slow(ctx)
	default:
		return "timeout", w.timeout(ctx)
	}
}

// small writes a few lines to both streams by shell built-ins.
func (w *worker) small(ctx context.Context) error {
	lines, code := w.rnd.IntN(50), w.rnd.IntN(256)
	script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done; exit %d`, lines, code)
	out, errs := sha256.New(), sha256.New()
	for i := range lines {
		fmt.Fprintf(out, "out %d\n", i)
		fmt.Fprintf(errs, "err %d\n", i)
	}
	return w.expect(ctx, shell(script), out, errs, code)
}

// large writes up to 200 KB.
func (w *worker) large(ctx context.Context) error {
	n := w.rnd.IntN(40_000)
	return w.expect(ctx, start("seq", strconv.Itoa(n)), sequence(n), sha256.New(), 0)
}

// sequence hashes what "seq n" prints.
func sequence(n int) hash.Hash {
	text, ends := sequences()
	h := sha256.New()
	h.Write(text[:ends[n]])
	return h
}

// slowLines is the most that is asked of seq: 2 MB, more than a log keeps.
const slowLines = 300_000

// sequences is the longest sequence, and where each shorter one ends in it.
var sequences = sync.OnceValues(func() (text []byte, ends []int) {
	ends = append(ends, 0)
	for i := 1; i <= slowLines; i++ {
		text = append(strconv.AppendInt(text, int64(i), 10), '\n')
		ends = append(ends, len(text))
	}
	return text, ends
})

func start(cmd string, args ...string) *pb.StartRequest {
	stdin := false
	return &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: cmd, Args: args}, Stdin: &stdin}
}

func shell(script string) *pb.StartRequest { return start("/bin/sh", "-c", script) }

// expect runs req and compares all that it says.
func (w *worker) expect(ctx context.Context, req *pb.StartRequest, out, errs hash.Hash, code int) error {
	cmd, err := w.c.Start(ctx, req)
	if err != nil {
		return err
	}
	defer cmd.Close()
	gotOut, gotErrs := sha256.New(), sha256.New()
	end, err := readAll(ctx, cmd, gotOut, gotErrs)
	switch {
	case err != nil:
		return err
	case int(end.ExitCode) != code || !end.Exited:
		return fmt.Errorf("%v ended with %v, want exit code %d", req.Process.Args, end, code)
	case string(gotOut.Sum(nil)) != string(out.Sum(nil)) || string(gotErrs.Sum(nil)) != string(errs.Sum(nil)):
		return fmt.Errorf("%v: output differs", req.Process.Args)
	}
	return nil
}

func readAll(ctx context.Context, cmd *client.Command, out, errs hash.Hash) (*pb.ProcessEvent_EndEvent, error) {
	for {
		e, err := cmd.Next(ctx)
		if err != nil {
			return nil, err
		}
		if end := e.GetEnd(); end != nil {
			if e, err = cmd.Next(ctx); !errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("after the end: %v, %w", e, err)
			}
			return end, nil
		}
		out.Write(e.GetData().GetStdout())
		errs.Write(e.GetData().GetStderr())
	}
}

// kill ends a tree that would live long and ignores every other signal.
func (w *worker) kill(ctx context.Context) error {
	cmd, err := w.c.Start(ctx, shell(`trap "" TERM HUP; setsid sleep 600 & sleep 600 & echo up; wait`))
	if err != nil {
		return err
	}
	defer cmd.Close()
	if _, err := cmd.Next(ctx); err != nil {
		return err
	}
	if err := cmd.Signal(ctx, 9); err != nil {
		return err
	}
	end, err := readAll(ctx, cmd, sha256.New(), sha256.New())
	if err != nil {
		return err
	}
	if end.Exited || end.Status != "signal: killed" {
		return fmt.Errorf("ended with %v, want killed", end)
	}
	return nil
}

// lost drops the connection somewhere in the output and goes on from there.
func (w *worker) lost(ctx context.Context) error {
	n := 1 + w.rnd.IntN(40_000)
	first, drop := context.WithCancel(ctx)
	defer drop()
	cmd, err := w.c.Start(first, start("seq", strconv.Itoa(n)))
	if err != nil {
		return err
	}
	out, offset := sha256.New(), uint64(0)
	for range 1 + w.rnd.IntN(3) {
		e, err := cmd.Next(first)
		if err != nil {
			return err
		}
		if e.GetEnd() != nil {
			break
		}
		out.Write(e.GetData().GetStdout())
		offset = e.GetData().GetOffset() + uint64(len(e.GetData().GetStdout()))
	}
	drop()
	_ = cmd.Close() // cut off on purpose
	again, err := w.c.Attach(ctx, &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: cmd.Pid()}}, offset)
	if err != nil {
		return err
	}
	defer again.Close()
	end, err := readAll(ctx, again, out, sha256.New())
	if err != nil {
		return err
	}
	if end.ExitCode != 0 || string(out.Sum(nil)) != string(sequence(n).Sum(nil)) {
		return fmt.Errorf("seq %d continued at %d: output differs, end %v", n, offset, end)
	}
	return nil
}

// slow reads a large output beside a second reader that stalls. Each gets
// everything, or is told what it missed.
func (w *worker) slow(ctx context.Context) error {
	cmd, err := w.c.Start(ctx, start("seq", strconv.Itoa(slowLines)))
	if err != nil {
		return err
	}
	defer cmd.Close()
	offset := uint64(0)
	stalled, err := w.c.Process.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{
		Process: &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: cmd.Pid()}}, Offset: &offset,
	}))
	if err != nil {
		return err
	}
	defer stalled.Close()
	out := sha256.New()
	switch _, err := readAll(ctx, cmd, out, sha256.New()); {
	case errors.Is(err, client.ErrLost): // it was the slower of the two, and was told so
	case err != nil:
		return err
	case string(out.Sum(nil)) != string(sequence(slowLines).Sum(nil)):
		return errors.New("output beside a slow reader differs")
	}
	return readStalled(stalled)
}

// readStalled reads a stream late. It may end early, but not silently.
func readStalled(s *connect.ServerStreamForClient[pb.ConnectResponse]) error {
	next, ended := uint64(0), false
	for s.Receive() {
		e := s.Msg().GetEvent()
		if gap := e.GetGap(); gap != nil {
			next = gap.To
		}
		if d := e.GetData(); d != nil {
			if d.GetOffset() != next {
				return fmt.Errorf("slow reader: byte %d follows %d", d.GetOffset(), next)
			}
			next += uint64(len(d.GetStdout()))
		}
		ended = ended || e.GetEnd() != nil
	}
	if code := connect.CodeOf(s.Err()); s.Err() != nil && code != connect.CodeAborted {
		return fmt.Errorf("slow reader: %w", s.Err())
	}
	if s.Err() == nil && !ended {
		return errors.New("slow reader: stream ended without end or error")
	}
	return nil
}

// timeout bounds a command that would run for long.
func (w *worker) timeout(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	cmd, err := w.c.Start(bounded, shell("setsid sleep 600 & sleep 600"))
	if err == nil {
		_, err = readAll(bounded, cmd, sha256.New(), sha256.New())
		_ = cmd.Close() // over
	}
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		return fmt.Errorf("ended with %w, want deadline_exceeded", err)
	}
	return nil
}
