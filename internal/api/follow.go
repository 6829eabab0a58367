package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
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
	// timeout ends the stream when the process was killed for it: for the
	// stream that set it.
	timeout bool
}

// run sends the start, the output and the end, with keepalives in between. It
// returns when the end is sent, ctx ends or the cursor is cut off.
func (f *follower) run(ctx context.Context) error {
	if err := f.send(startEvent(f.p)); err != nil {
		return err
	}
	quiet := time.NewTimer(f.keepalive)
	defer quiet.Stop()
	out := batchFrom(ctx)
	for {
		select {
		case <-f.cursor.Ready():
		case <-quiet.C:
			if err := f.send(keepAliveEvent); err != nil {
				return err
			}
			quiet.Reset(f.keepalive)
			continue
		case <-ctx.Done():
			return f.ended(context.Cause(ctx))
		}
		b, err := f.cursor.Take(f.maxChunk())
		if err != nil {
			out.calls.readerCutOff()
			// The end of the stream, too, has to find room on the way.
			time.AfterFunc(cutOffGrace, out.interrupt)
			return err
		}
		if b.Empty() {
			continue
		}
		guard := time.AfterFunc(cutOffGrace, func() { f.cutOff(out) })
		out.hold()
		err = f.sendBatch(out, &b)
		if b.End == nil && err == nil {
			err = out.release()
		}
		guard.Stop()
		if err != nil || b.End != nil {
			// Still held: what connect-go adds goes out with the rest.
			return err
		}
		quiet.Reset(f.keepalive)
	}
}

// ended is how the stream ends with its context. After a restore it can be
// continued, elsewhere, behind the last byte that was sent.
func (f *follower) ended(cause error) error {
	if errors.Is(cause, snapshot.ErrRestored) {
		return aborted(cause, f.cursor.Offset())
	}
	return cause
}

// cutOff interrupts a write that has been blocked for long, once the reader
// has lost its place anyway. A reader that is alone keeps it. It is called on
// a timer's goroutine, which the write's end stops.
func (f *follower) cutOff(out *batch) {
	if f.cursor.Behind() {
		out.interrupt()
	}
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
