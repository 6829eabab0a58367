package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
)

// flushAt is how much a held response gathers before it is written all the
// same, in bytes: larger writes gain nothing, and the buffer is pooled.
const flushAt = 256 << 10

// corkFrom is the size from which a flush is worth two system calls to make it
// one transmission, in bytes.
const corkFrom = 16 << 10

// batch gathers what is written until it is flushed, so that a message goes
// out in one write; while it is held, it ignores flushes, so that many do.
// Between flushes it holds no buffer.
//
// Everything but interrupt is for the handler's goroutine.
type batch struct {
	http.ResponseWriter
	held bool
	done bool       // see complete
	sent bool       // something was written
	cork func(bool) // of the connection; see Config.Cork
	buf  *[]byte    // pooled; nil when nothing is gathered
	err  error      // of a write; later ones fail alike

	calls  *calls // may be nil
	ended  bool   // a handler has, with code
	code   connect.Code
	status int // of the response; 0 while it has not begun

	mu       sync.Mutex
	finished bool // guarded by mu; the handler has returned
}

var batchBuffers = sync.Pool{New: func() any { return new([]byte) }}

type batchKey struct{}

// batched lets the handlers below next find their batch in the context.
func batched(next http.Handler, cork func(context.Context, bool), counts *calls) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := &batch{ResponseWriter: w, cork: func(bool) {}, calls: counts}
		end := counts.begin(r.URL.Path)
		defer func() { end(b.outcome()) }()
		if cork != nil && r.ProtoMajor == 1 { // HTTP/2 shares its connection
			b.cork = func(on bool) { cork(r.Context(), on) }
		}
		defer b.finish()
		next.ServeHTTP(b, r.WithContext(context.WithValue(r.Context(), batchKey{}, b)))
	})
}

func batchFrom(ctx context.Context) *batch { return ctx.Value(batchKey{}).(*batch) }

// Unwrap is for http.ResponseController.
func (b *batch) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// WriteHeader notes the status.
func (b *batch) WriteHeader(status int) {
	b.status = status
	b.ResponseWriter.WriteHeader(status)
}

func (b *batch) Write(p []byte) (int, error) {
	if err := b.gather(func(buf []byte) []byte { return append(buf, p...) }); err != nil {
		return 0, err
	}
	return len(p), nil
}

// gather lets add append to what is gathered.
func (b *batch) gather(add func([]byte) []byte) error {
	if b.err != nil || b.done {
		return b.err
	}
	if b.buf == nil {
		b.buf = batchBuffers.Get().(*[]byte)
	}
	*b.buf = add(*b.buf)
	if len(*b.buf) >= flushAt {
		b.drain()
	}
	return b.err
}

// drain writes what is gathered.
func (b *batch) drain() {
	if b.buf == nil {
		return
	}
	if b.err == nil {
		b.sent = true
		_, b.err = b.ResponseWriter.Write(*b.buf)
	}
	*b.buf = (*b.buf)[:0]
	batchBuffers.Put(b.buf)
	b.buf = nil
}

// Flush sends what is gathered, unless the batch is held.
func (b *batch) Flush() {
	if b.held {
		return
	}
	// net/http makes three writes of a large one: what fills its buffer, the
	// rest, and the end of the chunk.
	large := b.buf != nil && len(*b.buf) > corkFrom
	if large {
		b.cork(true)
		defer b.cork(false)
	}
	b.drain()
	if b.err == nil {
		b.err = http.NewResponseController(b.ResponseWriter).Flush()
	}
}

// hold makes the batch ignore flushes until release.
func (b *batch) hold() { b.held = true }

// release ends hold and flushes.
func (b *batch) release() error {
	b.held = false
	b.Flush()
	return b.err
}

// takeBack drops what is gathered. It reports false when some of the response
// was written already.
func (b *batch) takeBack() bool {
	if b.buf != nil {
		*b.buf = (*b.buf)[:0]
	}
	return !b.sent
}

// complete says that the response's body is whole: what is written from now on
// is dropped.
func (b *batch) complete() { b.done = true }

// interrupt makes a blocked write fail, on any goroutine.
func (b *batch) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.finished { // a finished response may be another's by now
		_ = http.NewResponseController(b.ResponseWriter).SetWriteDeadline(time.Unix(1, 0))
	}
}

func (b *batch) finish() {
	b.drain()
	b.mu.Lock()
	b.finished = true
	b.mu.Unlock()
}
