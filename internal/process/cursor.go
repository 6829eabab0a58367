package process

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Now is the offset of what comes next.
const Now int64 = -1

// batchBytes bounds what one Take answers, in bytes: enough to make system
// calls rare, little enough to stay in the processor's cache.
const batchBytes = 256 << 10

// busyTake is how much one Take has to have answered, in bytes, for the next one
// to wait a moment for more.
const busyTake = blockSize / 2

// Gap stands for output that is no longer kept: [From, To).
type Gap struct {
	From, To int64
}

// Batch is what a cursor has read. In order: the gap, the chunks, the end.
type Batch struct {
	Gap    *Gap
	Chunks []Chunk
	End    *Exit // the process has ended and all output before that was read
}

// Empty tells whether there was nothing to read.
func (b *Batch) Empty() bool { return b.Gap == nil && b.End == nil && len(b.Chunks) == 0 }

// Cursor reads a log from some offset on. Output.Attach makes it, its one
// reader calls Take whenever Ready says so, and Close detaches it.
type Cursor struct {
	o    *Output
	bell chan struct{}

	// Guarded by o.mu.
	at    int64 // offset of the next byte to take from the log
	until int64 // offset to end at, once the process has ended
	taken bool  // Take was called
	gap   *Gap  // not yet answered
	// kept holds references to what was in the log when a cursor was attached
	// in the past, so that a reader gets a whole window's time to catch up.
	kept []entry
	// idle: the last Take answered nothing, so that its reader waits for output. It
	// is idleSince the first that came then; for Output.sparing.
	idle      bool
	idleSince time.Time

	// Of the last Take: chunks is reused, held are the blocks to let go.
	chunks []Chunk
	held   []*block
}

// ErrBeyondEnd is returned for an offset that the output has not reached.
var ErrBeyondEnd = errors.New("offset is beyond the output")

// Attach opens a cursor at offset, or with Now at what comes next.
func (o *Output) Attach(offset int64) (*Cursor, error) {
	var resumed []*pump
	defer func() { resume(resumed) }()
	o.mu.Lock()
	defer o.mu.Unlock()
	c := &Cursor{o: o, bell: make(chan struct{}, 1), at: offset, until: math.MaxInt64}
	switch {
	case offset == Now:
		c.at = o.end
	case offset > o.end:
		return nil, fmt.Errorf("%w: it has %d bytes, not %d", ErrBeyondEnd, o.end, offset)
	}
	if c.at < o.start {
		c.gap = &Gap{From: c.at, To: o.start}
		c.at = o.start
	}
	if o.exit != nil {
		c.until = o.end
	}
	if c.at < o.end {
		c.keep(o.chunks.from(c.at))
	}
	o.cursors = append(o.cursors, c)
	resumed = o.moved()
	c.ring()
	return c, nil
}

// attachFirst opens the cursor of a process that is about to start. It drives
// from the beginning: the pumps, which stand by, need not be polled if it reads
// all there is, as of a command that ends at once.
func (o *Output) attachFirst(pumps []*pump) *Cursor {
	c, _ := o.Attach(0) // never beyond the end
	o.mu.Lock()
	defer o.mu.Unlock()
	o.driver, o.waiting = c, slices.Clone(pumps)
	return c
}

// keep takes references to all of entries.
func (c *Cursor) keep(entries []entry) {
	for _, e := range entries {
		e.data = e.data[max(0, c.at-e.offset):]
		e.offset = max(e.offset, c.at)
		e.block.ref()
		c.kept = append(c.kept, e)
		c.at = e.end()
	}
}

// ring wakes the reader.
func (c *Cursor) ring() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// Ready yields when Take is worth calling.
func (c *Cursor) Ready() <-chan struct{} { return c.bell }

// Take answers what there is to read, without waiting for more but a moment: see
// Output.patience. The bytes of the chunks are valid until the next Take or
// Close. No chunk is larger than maxChunk. The error is a *TooSlowError.
func (c *Cursor) Take(maxChunk int) (Batch, error) {
	o := c.o
	var resumed []*pump
	defer func() { resume(resumed) }()
	o.mu.Lock()
	defer o.mu.Unlock()
	busy := c.release() >= busyTake
	first := !c.taken
	c.taken = true
	if c.drive() {
		c.pull(0)
		if linger := o.patience(busy); linger > 0 && !first && c.at >= o.end && o.pull != nil {
			c.pull(linger)
		}
	}

	var b Batch
	b.Gap, c.gap = c.gap, nil
	room := batchBytes
	for len(c.kept) > 0 && room > 0 {
		// The reference passes from kept to held.
		e := c.kept[0]
		c.held = append(c.held, e.block)
		room -= c.split(e.stream, e.offset, e.data, maxChunk)
		if c.kept = c.kept[1:]; len(c.kept) == 0 {
			c.kept = nil
		}
	}
	if len(c.kept) == 0 && c.lost() {
		if len(c.chunks) == 0 && b.Gap == nil {
			return b, &TooSlowError{Offset: c.at}
		}
	} else if len(c.kept) == 0 && room > 0 && c.at < min(o.end, c.until) {
		resumed = c.takeLog(room, maxChunk)
	}
	b.Chunks = c.chunks
	c.idle = len(c.chunks) == 0
	if len(c.kept) == 0 && c.at >= c.until {
		b.End = o.exit
	}
	if len(c.chunks) > 0 || b.Gap != nil || first && o.driver == c && o.patience(false) > 0 {
		c.ring() // there may be more
	} else if o.driver == c {
		o.driver = nil
		resumed = o.moved()
	}
	return b, nil
}

// patience is for how long a reader that is alone waits for more itself, after
// its first Take: that one's answer goes out with the news that the command runs.
func (o *Output) patience(busy bool) time.Duration {
	if young := youngTime - time.Since(o.begun); young >= lingerTime {
		return young
	}
	if busy {
		return lingerTime
	}
	return 0
}

// pull reads the source, and with linger waits a moment for it. The caller
// holds o.mu, which is let go meanwhile.
func (c *Cursor) pull(linger time.Duration) {
	pull := c.o.pull
	c.o.mu.Unlock()
	defer c.o.mu.Lock()
	pull(linger)
}

// drive tells whether the cursor is to read the source: it has read the log,
// and nobody else does.
func (c *Cursor) drive() bool {
	o := c.o
	if o.readers != 1 || o.pull == nil || len(c.kept) > 0 || c.at < o.end {
		return false
	}
	o.driver = c
	return true
}

// takeLog reads from the log itself; see Output.moved for what it returns.
func (c *Cursor) takeLog(room, maxChunk int) (resumed []*pump) {
	for _, e := range c.o.chunks.from(c.at) {
		if room <= 0 || c.at >= c.until {
			break
		}
		data := e.data[c.at-e.offset:]
		data = data[:min(int64(len(data)), c.until-c.at)]
		e.block.ref()
		c.held = append(c.held, e.block)
		room -= c.split(e.stream, c.at, data, maxChunk)
		c.at += int64(len(data))
	}
	return c.o.moved()
}

// split adds data to the batch in chunks of at most size bytes.
func (c *Cursor) split(s Stream, offset int64, data []byte, size int) (n int) {
	n = len(data)
	for len(data) > 0 {
		piece := data[:min(len(data), size)]
		c.chunks = append(c.chunks, Chunk{Stream: s, Offset: offset, Data: piece})
		offset += int64(len(piece))
		data = data[len(piece):]
	}
	return n
}

// release lets the last batch go, and tells its size.
func (c *Cursor) release() (n int) {
	for _, chunk := range c.chunks {
		n += len(chunk.Data)
	}
	for _, b := range c.held {
		b.unref()
	}
	clear(c.held)
	clear(c.chunks)
	c.held, c.chunks = c.held[:0], c.chunks[:0]
	return n
}

// Close detaches the cursor. The reader calls it once, after its last Take.
func (c *Cursor) Close() {
	o := c.o
	var resumed []*pump
	defer func() { resume(resumed) }()
	o.mu.Lock()
	defer o.mu.Unlock()
	c.release()
	for _, e := range c.kept {
		e.block.unref()
	}
	c.kept = nil
	if o.driver == c {
		o.driver = nil
	}
	o.cursors = slices.DeleteFunc(o.cursors, func(other *Cursor) bool { return other == c })
	if len(o.cursors) == 0 {
		o.cursors = nil
	}
	resumed = o.moved()
}

// Offset is that of the next byte that Take answers: of the gap, if there is
// one.
func (c *Cursor) Offset() int64 {
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	switch {
	case c.gap != nil:
		return c.gap.From
	case len(c.kept) > 0:
		return c.kept[0].offset
	default:
		return c.at
	}
}

// Behind tells whether the cursor has been cut off: what it would read next is
// no longer kept.
func (c *Cursor) Behind() bool {
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	return c.lost()
}

// lost tells whether the log no longer has what the cursor would read next.
func (c *Cursor) lost() bool { return c.at < c.o.start && c.at < c.until }
