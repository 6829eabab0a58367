package process

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// noise is what every test log holds, repeated with a period that is prime.
var noise = func() []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, period+blockSize)
	for i := range b {
		b[i] = byte(rnd.Uint32())
		if i >= period {
			b[i] = b[i-period]
		}
	}
	return b
}()

const period = 65521

// bytesAt is what a log holds from offset on: n bytes, a block at most.
func bytesAt(offset int64, n int) []byte { return noise[offset%period:][:n] }

// writer appends to a log as a pump does, and knows what it wrote.
type writer struct {
	o       *Output
	end     int64
	streams []span // who wrote what
}

type span struct {
	end    int64
	stream Stream
}

// put appends n bytes when there is room, and tells whether there was.
func (w *writer) put(s Stream, n int) bool {
	if !w.hasRoom() {
		return false
	}
	w.spareNobody()
	for n > 0 {
		b := newBlock()
		p := b.buf[:min(n, blockSize)]
		copy(p, bytesAt(w.end, len(p)))
		if len(p) >= takeOver {
			w.o.append(s, p, b)
		} else {
			w.o.append(s, p, nil)
			b.unref()
		}
		w.end += int64(len(p))
		w.streams = append(w.streams, span{w.end, s})
		n -= len(p)
	}
	w.o.notify()
	return true
}

// spareNobody has slow readers cut off at once, without the moment that makes the
// outcome depend on time.
func (w *writer) spareNobody() {
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	w.o.credit = credit{used: spareTime, taken: true}
	for _, c := range w.o.cursors {
		c.idle = false
	}
}

func (w *writer) hasRoom() bool {
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	return w.o.hasRoom()
}

func (w *writer) streamAt(offset int64) Stream {
	i, _ := slices.BinarySearchFunc(w.streams, offset, func(s span, off int64) int {
		if s.end <= off {
			return -1
		}
		return 1
	})
	return w.streams[i].stream
}

// tap is a cursor under test.
type tap struct {
	t     *testing.T
	w     *writer
	c     *Cursor
	next  int64 // offset that has to come next
	asked int64 // a gap may begin here, first of all
	fresh bool
	alone bool // never had company
	held  []Chunk
	ended bool
}

// attach opens a cursor at offset.
func (w *writer) attach(t *testing.T, offset int64) *tap {
	t.Helper()
	c, err := w.o.Attach(offset)
	must(t, err)
	if offset == Now {
		offset = w.end
	}
	return &tap{t: t, w: w, c: c, next: offset, asked: offset, fresh: true, alone: true}
}

// check compares chunks with what was written.
func (p *tap) check(chunks []Chunk) {
	p.t.Helper()
	for _, c := range chunks {
		if !bytes.Equal(c.Data, bytesAt(c.Offset, len(c.Data))) {
			p.t.Fatalf("chunk [%d, %d) holds other bytes", c.Offset, c.Offset+int64(len(c.Data)))
		}
		last := c.Offset + int64(len(c.Data)) - 1
		if p.w.streamAt(c.Offset) != c.Stream || p.w.streamAt(last) != c.Stream {
			p.t.Fatalf("chunk [%d, %d] of stream %d mixes streams", c.Offset, last, c.Stream)
		}
	}
}

// take reads once: all is contiguous, and what was read stays until now.
func (p *tap) take(maxChunk int) (read int, err error) {
	p.t.Helper()
	p.check(p.held)
	want := p.next
	if p.fresh && p.asked != Now {
		want = p.asked
	}
	if got := p.c.Offset(); got != want {
		p.t.Fatalf("the cursor says it is at %d, not %d", got, want)
	}
	b, err := p.c.Take(maxChunk)
	p.held = b.Chunks
	if err != nil {
		if slow := (*TooSlowError)(nil); !errors.As(err, &slow) || slow.Offset != p.next {
			p.t.Fatalf("at %d: %v", p.next, err)
		}
		return 0, err
	}
	if b.Gap != nil {
		if !p.fresh || b.Gap.From != p.asked || b.Gap.To <= b.Gap.From {
			p.t.Fatalf("gap %+v, asked for %d", *b.Gap, p.asked)
		}
		p.next = b.Gap.To
	}
	p.fresh = false
	for _, c := range b.Chunks {
		if c.Offset != p.next || len(c.Data) == 0 || len(c.Data) > maxChunk {
			p.t.Fatalf("chunk of %d at %d, want at %d", len(c.Data), c.Offset, p.next)
		}
		p.next += int64(len(c.Data))
		read += len(c.Data)
	}
	p.check(b.Chunks)
	p.ended = b.End != nil
	return read, nil
}

func newLog(window int) *writer {
	return &writer{o: newOutput(window, newBudget(1<<40))}
}

// What a log holds on to is little more than what it counts, whatever the size
// of the pieces in which a command writes.
func TestLogHoldsWhatItCounts(t *testing.T) {
	r := newRig(t, DefaultConfig(), false)
	for _, size := range []int{20_000, blockSize/2 + 1, takeOver, blockSize} {
		const pieces = 10
		p, rd := r.start(withStdin(shell(fmt.Sprintf("for i in $(seq %d); do read line; dd if=/dev/zero bs=%d count=1 status=none; done", pieces, size))))
		for i := range pieces {
			must(t, p.WriteStdin(t.Context(), []byte("\n")))
			rd.until("a piece", func() bool { return rd.text.Len() >= (i+1)*size })
		}
		rd.all()
		rd.close()
		p.out.mu.Lock()
		held := 0
		for _, e := range p.out.chunks.from(0) {
			if e.block != nil {
				held += len(e.block.buf)
			} else {
				held += len(e.data)
			}
		}
		if count := p.out.cost; count < pieces*size || held > count*3/2 {
			t.Errorf("pieces of %d bytes: %d bytes are held and %d counted", size, held, count)
		}
		p.out.mu.Unlock()
	}
}
