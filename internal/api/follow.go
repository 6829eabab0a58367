package api

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/internal/snapshot"
)

const (
	// Largest pieces of output in one message, in bytes, from the contract.
	maxPipeChunk     = 32 << 10
	maxTerminalChunk = 16 << 10

	// defaultKeepalive is the quiet interval without a wish of the client's.
	defaultKeepalive = 90 * time.Second
	// cutOffGrace is how long a reader that was cut off may take over what is
	// under way to it, before the write is interrupted. It is checked this often.
	cutOffGrace = 30 * time.Second
)

// keepalive is the interval that the client asks for in the header
// Keepalive-Ping-Interval, in seconds.
func keepalive(h http.Header) time.Duration {
	const most = 24 * 60 * 60
	s, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || s <= 0 {
		return defaultKeepalive
	}
	return time.Duration(min(s, most)) * time.Second
}

// follower feeds one stream from one cursor. It is made and used on the
// handler's goroutine.
type follower struct {
	p         *process.Process
	cursor    *process.Cursor
	keepalive time.Duration
	gaps      bool // the client asked for an offset
	frames    framer
	send      func(*pb.ProcessEvent) error // anything but output
	sent      time.Time                    // when anything was sent last
	quiet     *time.Timer                  // of keepalives; nil until something is waited for

	writing atomic.Int64 // when the write under way began, in Unix ns; 0: none is
	guarded atomic.Bool  // look will be called
	guard   *time.Timer  // calls it; nil before the first write

	// timeout ends the stream when the process was killed for it: for the
	// stream that set it.
	timeout bool
}

// run sends the start, the output and the end, with keepalives in between. It
// returns when the end is sent, ctx ends or the cursor is cut off.
func (f *follower) run(ctx context.Context) error {
	defer f.stop()
	out := batchFrom(ctx)
	out.hold() // what there is already goes out with the start, in one write
	if err := f.send(startEvent(f.p)); err != nil {
		return err
	}
	<-f.cursor.Ready() // it was attached
	for first := true; ; first = false {
		b, err := f.cursor.Take(f.maxChunk())
		if err != nil {
			out.calls.readerCutOff()
			// The end of the stream, too, has to find room on the way.
			time.AfterFunc(cutOffGrace, out.interrupt)
			return err
		}
		if first || !b.Empty() {
			if err := f.sendHeld(out, &b); err != nil || b.End != nil {
				// Still held: what connect-go adds goes out with the rest.
				return err
			}
			f.sent = time.Now()
		}
		if err := f.await(ctx); err != nil {
			return err
		}
	}
}

// stop ends the timers.
func (f *follower) stop() {
	if f.quiet != nil {
		f.quiet.Stop()
	}
	f.writing.Store(0)
	if f.guard != nil {
		f.guard.Stop()
	}
}

// sendHeld sends a batch in one write, which it leaves to the caller at the
// end or an error.
func (f *follower) sendHeld(out *batch, b *process.Batch) error {
	out.hold()
	if b.End != nil {
		return f.sendBatch(out, b) // who has read everything is not behind
	}
	f.watch(out)
	defer f.writing.Store(0)
	if err := f.sendBatch(out, b); err != nil {
		return err
	}
	return out.release()
}

// await waits until there is something to take, and sends keepalives
// meanwhile.
func (f *follower) await(ctx context.Context) error {
	if ctx.Err() != nil {
		return f.ended(ctx)
	}
	select {
	case <-f.cursor.Ready():
		return nil
	default:
	}
	if f.quiet == nil {
		f.quiet = time.NewTimer(f.keepalive)
	}
	for {
		select {
		case <-f.cursor.Ready():
			return nil
		case <-f.quiet.C:
			// The timer runs on while there is output, which moves sent alone.
			if left := f.keepalive - time.Since(f.sent); left > 0 {
				f.quiet.Reset(left)
				continue
			}
			if err := f.send(keepAliveEvent); err != nil {
				return err
			}
			f.sent = time.Now()
			f.quiet.Reset(f.keepalive)
		case <-ctx.Done():
			return f.ended(ctx)
		}
	}
}

// ended is how the stream ends with its context, or nil if it goes on. After a
// restore it can be continued, elsewhere, behind the last byte that was sent.
// When the daemon ends, which gives requests a moment, all that is left of a
// process that has ended is there to be sent.
func (f *follower) ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, snapshot.ErrRestored):
		return aborted(cause, f.cursor.Offset())
	case errors.Is(cause, process.ErrClosed) && f.p.Exit() != nil:
		<-f.cursor.Ready() // rung with the end, and while there is more
		return nil
	}
	return cause
}

// watch has a write that begins now interrupted when it has been blocked for
// long, once the reader has lost its place anyway. A reader that is alone keeps
// it. The timer runs on from write to write: to start one for each would wake
// the runtime's poller each time.
func (f *follower) watch(out *batch) {
	if f.guard == nil {
		f.guard = time.AfterFunc(math.MaxInt64, func() { f.look(out) }) // look sees the timer
	}
	f.writing.Store(time.Now().UnixNano())
	if f.guarded.CompareAndSwap(false, true) {
		f.guard.Reset(cutOffGrace)
	}
}

// look is the timer's look at the write, on a goroutine of its own. It may run
// once more after the handler has returned.
func (f *follower) look(out *batch) {
	began := f.writing.Load()
	if began == 0 {
		f.guarded.Store(false)
		began = f.writing.Load()
		if began == 0 || !f.guarded.CompareAndSwap(false, true) {
			return // nothing to watch, or the next write has seen to it
		}
	}
	left := cutOffGrace - time.Since(time.Unix(0, began))
	if left <= 0 {
		if f.cursor.Behind() {
			out.interrupt()
			return
		}
		left = cutOffGrace
	}
	f.guard.Reset(left)
}

func (f *follower) maxChunk() int {
	if f.p.Terminal() {
		return maxTerminalChunk
	}
	return maxPipeChunk
}

func (f *follower) sendBatch(out *batch, b *process.Batch) error {
	if b.Gap != nil && f.gaps {
		if err := f.send(gapEvent(b.Gap)); err != nil {
			return err
		}
	}
	for _, c := range b.Chunks {
		if err := out.gather(func(buf []byte) []byte { return f.frames.append(buf, c) }); err != nil {
			return err
		}
	}
	switch {
	case b.End == nil:
		return nil
	case b.End.TimedOut && f.timeout:
		return context.DeadlineExceeded
	default:
		return f.send(endEvent(b.End))
	}
}
