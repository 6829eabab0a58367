package daemon

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
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
// nothing, and in one it is not woken.
type trimmer struct {
	quiet   time.Duration
	drop    func()
	bell    chan struct{}
	begun   time.Time
	touched atomic.Int64 // when something has ended last, in nanoseconds since begun
	burst   atomic.Bool  // run will look without being rung for
	resting atomic.Bool
}

func newTrimmer(quiet time.Duration, drop func()) *trimmer {
	return &trimmer{quiet: quiet, drop: drop, bell: make(chan struct{}, 1), begun: time.Now()}
}

// Quiesce makes the trimmer do nothing until Resume.
func (t *trimmer) Quiesce(context.Context) error {
	t.resting.Store(true)
	t.ring() // it stops its timer
	return nil
}

// Resume undoes Quiesce. Whatever has ended meanwhile counts as just now.
func (t *trimmer) Resume() {
	t.resting.Store(false)
	t.touch()
}

// touch says that something has ended. It does not block.
func (t *trimmer) touch() {
	t.touched.Store(int64(time.Since(t.begun)))
	if t.burst.CompareAndSwap(false, true) {
		t.ring()
	}
}

func (t *trimmer) ring() {
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
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		t.burst.Store(false) // what is not seen below rings
		quiet := time.Since(t.begun) - time.Duration(t.touched.Load())
		switch {
		case t.resting.Load():
			timer.Stop()
		case quiet < t.quiet:
			t.burst.Store(true)
			timer.Reset(t.quiet - quiet)
		default:
			t.drop()
			trim()
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
	fields := strings.Fields(string(b)) // in pages: size, resident, shared, and more
	if len(fields) < 3 {
		return math.MaxInt
	}
	resident, err1 := strconv.Atoi(fields[1])
	shared, err2 := strconv.Atoi(fields[2])
	if err1 != nil || err2 != nil {
		return math.MaxInt
	}
	return (resident - shared) * os.Getpagesize()
}
