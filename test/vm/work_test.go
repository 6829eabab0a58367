package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/client"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/test/vm/pattern"
)

// work keeps a machine busy, also while it is frozen and after it has come
// back: commands that start, output that streams, garbage that is made in the
// daemon. What a worker gets is checked to the byte. Its calls may fail while
// the machine is away, and at no other time.
type work struct {
	m    *machine // whose client and link the restored ones have, too
	stop context.CancelFunc
	wg   sync.WaitGroup

	away     atomic.Int32 // 1 while calls may fail
	starts   atomic.Int64 // commands that were run whole
	bytes    atomic.Int64 // of output that were checked
	calls    atomic.Int64 // other requests
	uploads  atomic.Int64 // of files that came back as they were
	failures atomic.Int64 // that were excused

	mu   sync.Mutex
	errs []error // guarded by mu
}

// breath is what cheap calls leave to others of the machine's one processor.
const breath = 100 * time.Millisecond

// streams is how many endless outputs are followed.
const streams = 2

func startWork(t testing.TB, m *machine) *work {
	ctx, stop := context.WithCancel(context.Background())
	w := &work{m: m, stop: stop}
	w.wg.Go(func() { w.loop(ctx, w.command) })
	w.wg.Go(func() { w.loop(ctx, w.list) })
	w.wg.Go(func() { w.loop(ctx, w.input) })
	w.wg.Go(func() { w.loop(ctx, w.upload) })
	for seed := range uint64(streams) {
		cmd, err := m.Start(ctx, request("/guest", "stream", strconv.FormatUint(seed, 10)))
		must(t, err)
		w.wg.Go(func() { w.follow(ctx, cmd, seed) })
	}
	return w
}

// loop repeats one kind of call, the next when the last has ended.
func (w *work) loop(ctx context.Context, call func(context.Context) error) {
	for ctx.Err() == nil {
		away := w.away.Load()
		ctx, cancel := context.WithTimeout(ctx, stepLimit)
		err := call(ctx)
		cancel()
		if err == nil {
			continue
		}
		if away|w.away.Load() == 0 {
			w.report(ctx, err)
			continue
		}
		w.failures.Add(1)
		time.Sleep(20 * time.Millisecond) // a machine that is away refuses at once
	}
}

func (w *work) report(ctx context.Context, err error) {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return // the work is over
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// command runs one to its end.
func (w *work) command(ctx context.Context) error {
	n := w.starts.Load()
	cmd, err := w.m.Start(ctx, request("/guest", "echo", strconv.FormatInt(n, 10)))
	if err != nil {
		return err
	}
	defer cmd.Close()
	r, err := finish(ctx, cmd)
	if err != nil {
		return err
	}
	if r.end.ExitCode != 0 || r.output != fmt.Sprintln(n) {
		return fmt.Errorf("command %d printed %q and ended with %v", n, r.output, r.end)
	}
	w.starts.Add(1)
	return nil
}

// list makes garbage of many small objects.
func (w *work) list(ctx context.Context) error {
	res, err := w.m.Process.List(ctx, connect.NewRequest(&pb.ListRequest{}))
	if err == nil && len(res.Msg.Processes) < streams {
		err = fmt.Errorf("only %d processes are listed", len(res.Msg.Processes))
	}
	if err == nil {
		w.calls.Add(1)
		time.Sleep(breath)
	}
	return err
}

// input makes garbage of few large objects.
func (w *work) input(ctx context.Context) error {
	const size = 256 << 10
	cmd, err := w.m.Start(ctx, request("/guest", "count"))
	if err != nil {
		return err
	}
	defer cmd.Close()
	if err = cmd.Write(ctx, false, make([]byte, size)); err == nil {
		err = cmd.CloseStdin(ctx)
	}
	if err != nil {
		return errors.Join(err, cmd.Signal(ctx, 9))
	}
	r, err := finish(ctx, cmd)
	if err == nil && strings.TrimSpace(r.output) != strconv.Itoa(size) {
		err = fmt.Errorf("of %d bytes of input the program got %q", size, r.output)
	}
	if err == nil {
		w.calls.Add(1)
		time.Sleep(breath)
	}
	return err
}

// upload sends a file and reads it again.
func (w *work) upload(ctx context.Context) error {
	n := w.uploads.Load()
	content := make([]byte, 300_000)
	pattern.Fill(content, uint64(n), 0)
	url := files("/tmp/upload")
	if _, err := w.m.do(ctx, http.MethodPost, url, "application/octet-stream", bytes.NewReader(content)); err != nil {
		return err
	}
	got, err := w.m.do(ctx, http.MethodGet, url, "", nil)
	if err == nil && !bytes.Equal(got, content) {
		err = fmt.Errorf("upload %d came back with %d bytes of %d, or others", n, len(got), len(content))
	}
	if err == nil {
		w.uploads.Add(1)
		time.Sleep(breath)
	}
	return err
}

// follow reads an endless output, by offset across all interruptions: every
// byte once, each the right one.
func (w *work) follow(ctx context.Context, cmd *client.Command, seed uint64) {
	var at uint64
	for ctx.Err() == nil {
		e, err := cmd.Next(ctx)
		switch {
		case err == nil && e.GetData() != nil:
			b := client.Output(e.GetData())
			if got := e.GetData().GetOffset(); got != at {
				w.report(ctx, fmt.Errorf("stream %d: offset %d after %d", seed, got, at))
				return
			}
			if wrong := pattern.Check(b, seed, at); wrong >= 0 {
				w.report(ctx, fmt.Errorf("stream %d: wrong byte at %d", seed, at+uint64(wrong)))
				return
			}
			at += uint64(len(b))
			w.bytes.Add(int64(len(b)))
		case err == nil:
			w.report(ctx, fmt.Errorf("stream %d ended: %v", seed, e))
			return
		case w.away.Load() == 0:
			w.report(ctx, fmt.Errorf("stream %d at %d: %w", seed, at, err))
			return
		default:
			w.failures.Add(1)
			cmd = w.attach(ctx, cmd, at)
		}
	}
}

// attach tries until it has the stream again.
func (w *work) attach(ctx context.Context, old *client.Command, at uint64) *client.Command {
	sel := &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: old.Pid()}}
	_ = old.Close()
	for ctx.Err() == nil {
		cmd, err := w.m.Attach(ctx, sel, at)
		if err == nil {
			return cmd
		}
		time.Sleep(50 * time.Millisecond)
	}
	return old
}

// progress waits until every kind of work has got further.
func (w *work) progress(t testing.TB) {
	t.Helper()
	starts, bytes, calls, uploads := w.starts.Load(), w.bytes.Load(), w.calls.Load(), w.uploads.Load()
	for end := time.Now().Add(stepLimit); ; time.Sleep(10 * time.Millisecond) {
		if w.starts.Load() > starts && w.bytes.Load() > bytes+4096 && w.calls.Load() > calls+1 && w.uploads.Load() > uploads {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("work stands still: %d commands, %d bytes, %d calls, %d uploads more",
				w.starts.Load()-starts, w.bytes.Load()-bytes, w.calls.Load()-calls, w.uploads.Load()-uploads)
		}
	}
}

// check fails the test with what went wrong so far.
func (w *work) check(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, err := range w.errs {
		t.Error(err)
	}
	w.errs = nil
}

func (w *work) end(t testing.TB) {
	w.stop()
	w.wg.Wait()
	w.check(t)
}
