package process

import (
	"fmt"
	"sync"
	"time"
)

// Stream says which output a chunk belongs to.
type Stream uint8

// The streams of a process. A terminal merges the first two into the third.
const (
	Stdout Stream = iota + 1
	Stderr
	Terminal
)

// TooSlowError ends a cursor that fell further behind the fastest one than the
// log keeps. The reader may go on at Offset with a new cursor.
type TooSlowError struct {
	Offset int64
}

func (e *TooSlowError) Error() string {
	return fmt.Sprintf("reader too slow beside others: connect again from offset %d", e.Offset)
}

const (
	// keepLess is what a busy log keeps while all logs together exceed their
	// budget, in bytes.
	keepLess = 64 << 10
	// chunkCost is the least that a chunk counts against the window, in bytes.
	// It bounds the memory of a log of tiny chunks.
	chunkCost = 64
	// spareTime is for how long at a time a log waits for readers that are about to
	// be cut off: longer than a scheduler lets them wait for their turn. It regains
	// one part in spareShare of the time in which it does not.
	spareTime  = 20 * time.Millisecond
	spareShare = 20
	// arrival is how long a reader that waits for output may take to come for it.
	arrival = 500 * time.Millisecond
	// minTail and maxTail bound the blocks that small writes are copied to.
	minTail = 512
	maxTail = 32 << 10
)

// Output is the log of what one process wrote, all streams in one sequence.
// Every byte has an offset. The log keeps the newest bytes, up to a window, and
// any number of cursors read it.
//
// The fastest attached cursor sets the pace: what it has not read is never
// dropped, and a writer waits until there is room. What another
// cursor has not read is dropped when it leaves the window, and that cursor is
// then cut off. With no cursor attached, writers never wait.
//
// A cursor that is alone, but for such as were cut off, reads the source itself
// while there is something to read, and the pumps stand by: a busy stream then
// stays on one goroutine and in one processor's cache, instead of being handed
// over for each piece.
//
// The process's pumps write and one handler per cursor reads; there is no
// goroutine here. Methods are safe for concurrent use.
type Output struct {
	budget *Budget
	begun  time.Time // when the process was to start

	mu      sync.Mutex
	window  int         // bytes to keep; guarded by mu, as is all below
	chunks  chunkQueue  // consecutive, oldest first
	cost    int         // of chunks, against the window
	start   int64       // offset of the oldest byte kept
	end     int64       // offset of the next byte
	tail    []byte      // what is left of the block that small writes go to
	cursors []*Cursor   // attached
	readers int         // cursors that may read on: not ended, not cut off
	fastest int64       // how far the fastest of them has read
	waiting []*pump     // for room
	spare   *time.Timer // runs spared; nil when nobody is spared
	credit  credit
	exit    *Exit // set once by finish
	// label is kept with the log and goes with it; at labelCost bytes.
	label     any
	labelCost int
	// driver is the cursor that reads the source, while it is the only one.
	driver *Cursor
	// pull reads the source into the log. It does not wait or, to linger, for a
	// moment only. nil once the leader is gone.
	pull func(linger time.Duration)
}

func newOutput(window int, b *Budget) *Output {
	return &Output{budget: b, window: window, begun: time.Now()}
}

// wait tells whether p has to wait before it may append. If so, p.resume is
// called when it is worth trying again.
func (o *Output) wait(p *pump) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hasRoom() && !o.sparing(time.Now()) {
		return false
	}
	o.waiting = append(o.waiting, p)
	return true
}

// roomy tells whether a writer may append now.
func (o *Output) roomy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hasRoom() && !o.sparing(time.Now())
}

// pullable tells whether the driver is alone still. Once others have come the pumps
// append, and a second writer would push out what the driver has not taken.
func (o *Output) pullable() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.readers == 1
}

// sparing tells whether the writer waits for a reader that the next burst would
// cut off. A connection's buffers may swallow a window at once, and make a slow
// reader the fastest for as long as that takes; who is only scheduled later is not
// slow. How long the writer waits altogether is bounded: the fastest sets the pace.
func (o *Output) sparing(now time.Time) bool {
	o.credit.settle(now)
	var patience time.Duration
	if o.readers > 1 && o.cost >= o.limit()-burstBytes {
		patience = o.patienceFor(o.start+burstBytes, now)
	}
	o.credit.taken = patience > 0
	if o.credit.taken && o.spare == nil {
		o.spare = time.AfterFunc(patience, o.spared)
	}
	return o.credit.taken
}

// patienceFor is for how long, if at all, the log waits for readers that have not
// read all before offset, though the fastest has.
func (o *Output) patienceFor(offset int64, now time.Time) time.Duration {
	left := o.credit.left()
	for _, c := range o.cursors {
		switch {
		case c.at >= min(offset, o.fastest, c.until) || c.lost(): // in no danger, or beyond help
		case left > 0:
			return left
		case c.idle && now.Sub(c.idleSince) < arrival:
			return spareTime
		}
	}
	return 0
}

// credit is for how long a log may wait for slower readers: spareTime, regained
// while it does not wait.
type credit struct {
	used  time.Duration
	at    time.Time // when used was right
	taken bool      // the log waits
}

// settle counts the time up to now.
func (c *credit) settle(now time.Time) {
	passed := now.Sub(c.at)
	c.at = now
	if c.taken {
		c.used = min(c.used+min(passed, spareTime), spareTime)
	} else {
		c.used = max(c.used-passed/spareShare, 0)
	}
}

// left is what may still be used. Little is not worth beginning with: who needs
// more would be cut off all the same.
func (c *credit) left() time.Duration {
	if left := spareTime - c.used; c.taken || left >= spareTime/4 {
		return left
	}
	return 0
}

// spared lets the writers look again.
func (o *Output) spared() {
	o.mu.Lock()
	resumed := o.waiting
	o.waiting, o.spare = nil, nil
	o.mu.Unlock()
	resume(resumed)
}

// hasRoom tells whether a chunk more stays within the window or can make the
// oldest go. A writer that has room overshoots the window by one burst at most.
func (o *Output) hasRoom() bool {
	if o.driver != nil && o.readers == 1 {
		return false // it sees to it
	}
	return o.cost < o.limit() || o.evictable()
}

// evictable tells whether the fastest reader, if there is one, has read the
// oldest chunk, if there is one.
func (o *Output) evictable() bool {
	first := o.chunks.first()
	return first == nil || o.readers == 0 || first.end() <= o.fastest
}

func (o *Output) limit() int {
	if o.budget.tight() {
		return min(o.window, keepLess)
	}
	return o.window
}

// append adds p to the log. When b is not nil, p lies in b and the log takes b
// over; otherwise it copies. It never waits: the writer has asked wait before.
func (o *Output) append(s Stream, p []byte, b *block) {
	o.mu.Lock()
	o.begin()
	if b != nil {
		o.push(entry{stream: s, offset: o.end, data: p, block: b})
	}
	for b == nil && len(p) > 0 {
		p = p[o.pushCopy(s, p):]
	}
	o.evict()
	o.mu.Unlock()
}

// begin notes the time for readers that wait for output: there is some now.
func (o *Output) begin() {
	if len(o.cursors) < 2 {
		return // nobody is slow beside others
	}
	now := time.Now()
	for _, c := range o.cursors {
		if c.idle && c.at == o.end {
			c.idleSince = now
		}
	}
}

// notify wakes the readers and keeps the budget. A writer calls it when it has
// appended what it had, rather than for each piece: waking costs more than
// reading. It holds no lock then.
func (o *Output) notify() {
	o.mu.Lock()
	for _, c := range o.cursors {
		c.ring()
	}
	o.mu.Unlock()
	o.budget.reclaim()
}

func (o *Output) push(e entry) {
	o.chunks.push(e)
	o.end = e.end()
	o.charge(e.cost())
}

// pushCopy copies as much of p as the tail takes, onto the last chunk when
// that is of the same stream and ends where the tail begins.
func (o *Output) pushCopy(s Stream, p []byte) int {
	if len(o.tail) == 0 {
		// Blocks grow with what is kept: who says little costs little.
		o.tail = make([]byte, min(max(minTail, int(o.end-o.start)), maxTail))
	}
	n := copy(o.tail, p)
	last := o.chunks.last()
	if last != nil && last.stream == s && last.block == nil && cap(last.data) > len(last.data) {
		before := last.cost()
		last.data = last.data[:len(last.data)+n]
		o.end = last.end()
		o.charge(last.cost() - before)
	} else {
		o.push(entry{stream: s, offset: o.end, data: o.tail[:n]})
	}
	o.tail = o.tail[n:]
	return n
}

func (o *Output) charge(cost int) {
	o.cost += cost
	o.budget.add(cost)
}

// evict drops the oldest chunks while there are too many. One that a reader has yet
// to take for which the writer would wait stays, up to a burst more than the window.
func (o *Output) evict() {
	for o.cost > o.limit() && o.chunks.first() != nil && o.evictable() {
		first := o.chunks.first()
		if o.readers > 1 && o.cost <= o.limit()+burstBytes {
			now := time.Now()
			o.credit.settle(now)
			if o.patienceFor(first.end(), now) > 0 {
				return
			}
		}
		o.charge(-first.cost())
		o.start = first.end()
		first.block.unref()
		o.chunks.pop()
	}
	if o.chunks.first() == nil {
		o.tail = nil
	}
}

// moved settles the log after cursors have read, come or gone. The caller
// calls resume with what it returns when it no longer holds mu.
func (o *Output) moved() (resumed []*pump) {
	o.fastest, o.readers = 0, 0
	for _, c := range o.cursors {
		if !c.lost() && c.at < c.until {
			o.fastest = max(o.fastest, c.at)
			o.readers++
		}
	}
	o.evict()
	if len(o.waiting) > 0 && o.hasRoom() {
		resumed, o.waiting = o.waiting, nil
	}
	return resumed
}

func resume(pumps []*pump) {
	for _, p := range pumps {
		p.resume()
	}
}

// leaderGone leaves the source to the pumps from now on: a reader that does not
// go on must not keep them from finding the end.
func (o *Output) leaderGone() (resumed []*pump) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pull, o.driver = nil, nil
	return o.moved()
}

// finish records how the process ended. Cursors yield what came before and
// then the end. Descendants may still append.
func (o *Output) finish(e Exit) {
	o.mu.Lock()
	o.exit = &e
	for _, c := range o.cursors {
		c.until = o.end
		c.ring()
	}
	resumed := o.moved()
	o.mu.Unlock()
	resume(resumed)
}

// carry has the log keep label, which takes cost bytes.
func (o *Output) carry(label any, cost int) {
	o.mu.Lock()
	o.label, o.labelCost = label, cost
	o.budget.add(cost)
	o.mu.Unlock()
	o.budget.reclaim()
}

// carried is the label; nil once it has been dropped.
func (o *Output) carried() any {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.label
}

// drop gives up what is kept, as far as no attached cursor has yet to read it.
func (o *Output) drop() {
	o.mu.Lock()
	o.window = 0
	o.budget.add(-o.labelCost)
	o.label, o.labelCost = nil, 0
	resumed := o.moved()
	o.mu.Unlock()
	resume(resumed)
}

// Written is how many bytes the process has written so far.
func (o *Output) Written() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end
}
