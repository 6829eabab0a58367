package daemon

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// worthCollecting is from how much anonymous memory on a collection makes it
// less, in bytes. The first one of a process costs 0.9 MiB for good (two more
// lists of spans for each size of object, a page and a half each), and so does
// half of it runtime.ReadMemStats: whether it is worth it, the kernel has to say.
const worthCollecting = 3 << 20

// trimmer gives back what a burst of commands leaves once it is over: free memory
// and, with drop, what else is kept for the next command. Between bursts it does
// nothing.
type trimmer struct {
	quiet   time.Duration
	drop    func()
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

func newTrimmer(quiet time.Duration, drop func()) *trimmer {
	return &trimmer{quiet: quiet, drop: drop, bell: make(chan struct{}, 1)}
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
			t.drop()
			trim()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// trim collects and returns free memory where that makes the process smaller.
func trim() {
	if anonymousMemory() < worthCollecting {
		return
	}
	runtime.GC() // pools keep what they hold through one collection
	debug.FreeOSMemory()
}

// anonymousMemory is how much of the process's memory no file backs, in bytes;
// where the kernel does not say, without end.
func anonymousMemory() int {
	b, err := os.ReadFile("/proc/self/statm") // proc_pid_statm(5)
	if err != nil {
		return math.MaxInt
	}
	var size, resident, shared int // in pages
	if _, err := fmt.Sscan(string(b), &size, &resident, &shared); err != nil {
		return math.MaxInt
	}
	return (resident - shared) * os.Getpagesize()
}
