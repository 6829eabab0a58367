package process

import (
	"slices"
	"sync"
)

// Chunk is a piece of output. Its bytes belong to the log: see Cursor.Take.
type Chunk struct {
	Stream Stream
	Offset int64 // of the first byte, in all output of the process
	Data   []byte
}

// entry is a chunk in the log.
type entry struct {
	stream Stream
	offset int64
	data   []byte
	block  *block // what data lies in; nil when the log copied it
}

func (e *entry) end() int64 { return e.offset + int64(len(e.data)) }
func (e *entry) cost() int  { return max(len(e.data), chunkCost) }

// blockSize is the size of a pump's read, in bytes: what a pipe holds before
// it is enlarged.
const blockSize = 64 << 10

// block is a pooled read buffer that a log keeps without copying. Its count is
// guarded by the mutex of that log.
type block struct {
	// By itself, so that it is whole pages: a little more would be another one.
	buf  *[blockSize]byte
	refs int
}

var blocks = sync.Pool{New: func() any { return &block{buf: new([blockSize]byte)} }}

func newBlock() *block {
	b := blocks.Get().(*block)
	b.refs = 1
	return b
}

// ref and unref do nothing on a nil block: the collector looks after copies.
func (b *block) ref() {
	if b != nil {
		b.refs++
	}
}

func (b *block) unref() {
	if b == nil {
		return
	}
	if b.refs--; b.refs == 0 {
		blocks.Put(b)
	}
}

// chunkQueue is a queue of entries with consecutive offsets.
type chunkQueue struct {
	entries []entry
	head    int // entries before it are spent
}

func (q *chunkQueue) push(e entry) { q.entries = append(q.entries, e) }

// pop removes the first entry and gives memory back as the queue shrinks.
func (q *chunkQueue) pop() {
	q.entries[q.head] = entry{}
	q.head++
	switch {
	case q.head == len(q.entries):
		q.entries, q.head = nil, 0
	case q.head >= 64 && q.head*2 >= len(q.entries):
		q.entries = append(make([]entry, 0, 2*(len(q.entries)-q.head)), q.entries[q.head:]...)
		q.head = 0
	}
}

func (q *chunkQueue) first() *entry {
	if q.head == len(q.entries) {
		return nil
	}
	return &q.entries[q.head]
}

func (q *chunkQueue) last() *entry {
	if q.head == len(q.entries) {
		return nil
	}
	return &q.entries[len(q.entries)-1]
}

// from answers the entries from the one that holds offset on.
func (q *chunkQueue) from(offset int64) []entry {
	live := q.entries[q.head:]
	i, _ := slices.BinarySearchFunc(live, offset, func(e entry, off int64) int {
		if e.end() <= off {
			return -1
		}
		return 1
	})
	return live[i:]
}
