package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// worthReturning is how much free heap makes it worth to return it, in bytes.
const worthReturning = 2 << 20

// trimmer gives memory back to the system once a burst of commands is over.
// Between bursts it does nothing.
type trimmer struct {
	quiet   time.Duration
	bell    chan struct{}
	resting atomic.Bool
}

// Quiesce makes the trimmer do nothing until Resume.
func (t *trimmer) Quiesce(context.Context) error {
	t.resting.Store(true)
	t.touch() // it stops its timer
	return nil
}

// Resume undoes Quiesce. Whatever has ended meanwhile counts as just now.
func (t *trimmer) Resume() {
	t.resting.Store(false)
	t.touch()
}

func newTrimmer(quiet time.Duration) *trimmer {
	return &trimmer{quiet: quiet, bell: make(chan struct{}, 1)}
}

// touch says that something has ended. It does not block.
func (t *trimmer) touch() {
	select {
	case t.bell <- struct{}{}:
	default:
	}
}

func (t *trimmer) run(ctx context.Context) error {
	timer := time.NewTimer(t.quiet)
	timer.Stop()
	for {
		select {
		case <-t.bell:
			if t.resting.Load() {
				timer.Stop()
			} else {
				timer.Reset(t.quiet)
			}
		case <-timer.C:
			trim()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// trim collects and returns free heap when there is enough of it.
func trim() {
	// Package runtime/metrics tells the same, but takes 0.1 ms to load, and this
	// runs once after a burst.
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	// Free spans, and what lies unused or dead in others.
	if m.HeapIdle-m.HeapReleased+m.HeapInuse >= worthReturning {
		runtime.GC() // pools keep what they hold through one collection
		debug.FreeOSMemory()
	}
}
