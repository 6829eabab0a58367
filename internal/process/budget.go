package process

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Budget bounds what the logs of all processes, with their labels, keep together.
// Past it, the logs of ended processes go first, oldest first; then busy logs keep less.
// It is safe for concurrent use.
type Budget struct {
	limit int64 // bytes
	used  atomic.Int64

	mu    sync.Mutex
	ended []*Output    // guarded by mu; oldest first
	spare atomic.Int64 // how many those are; changes under mu
}

func newBudget(limit int64) *Budget { return &Budget{limit: limit} }

func (b *Budget) add(n int) { b.used.Add(int64(n)) }

func (b *Budget) exceeded() bool { return b.used.Load() > b.limit }

// tight tells whether busy logs have to keep less.
func (b *Budget) tight() bool { return b.exceeded() && b.spare.Load() == 0 }

// retire says that the process of o has ended.
func (b *Budget) retire(o *Output) {
	b.mu.Lock()
	b.ended = append(b.ended, o)
	b.spare.Add(1)
	b.mu.Unlock()
	b.reclaim()
}

// reclaim drops ended logs while the budget is exceeded. The caller holds no
// lock of a log.
func (b *Budget) reclaim() {
	for b.exceeded() {
		b.mu.Lock()
		if len(b.ended) == 0 {
			b.mu.Unlock()
			return
		}
		o := b.ended[0]
		b.ended[0] = nil
		b.ended = b.ended[1:]
		b.spare.Add(-1)
		b.mu.Unlock()
		o.drop()
	}
}

// forget takes o out of the list, if it is still there, and drops it.
func (b *Budget) forget(o *Output) {
	b.mu.Lock()
	if i := slices.Index(b.ended, o); i >= 0 {
		b.ended = slices.Delete(b.ended, i, i+1)
		b.spare.Add(-1)
	}
	b.mu.Unlock()
	o.drop()
}
