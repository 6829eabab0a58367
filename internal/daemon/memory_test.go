package daemon

import (
	"context"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// anonymous is how much of this process's memory no file backs, in bytes.
func anonymous(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^Anonymous:\s+(\d+) kB$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no Anonymous in %s", b)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// TestTrimmer checks that memory goes back to the system some time after the
// last end, and only then.
func TestTrimmer(t *testing.T) {
	leaktest.Check(t)
	// Nothing but the trimmer gives memory back here.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	const quiet, size = 300 * time.Millisecond, 64 << 20
	var drops atomic.Int32
	trimmer := newTrimmer(quiet, func() { drops.Add(1) })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- trimmer.run(ctx) }()
	burst := make([]byte, size)
	for i := range burst {
		burst[i] = 1
	}
	runtime.KeepAlive(burst)
	full := anonymous(t)
	burst = nil //nolint:ineffassign,wastedassign // the collector may have it
	for range 10 {
		trimmer.touch() // never blocks
	}
	for end := time.Now().Add(limit); anonymous(t) > full-size/2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d MiB are still taken, of %d at most", anonymous(t)>>20, full>>20)
		}
	}
	if n := drops.Load(); n != 1 {
		t.Errorf("dropped %d times what was kept for the next command", n)
	}
	// At rest it does nothing, and afterwards what it left undone.
	if err := trimmer.Quiesce(ctx); err != nil {
		t.Error(err)
	}
	burst = make([]byte, size)
	for i := range burst {
		burst[i] = 1
	}
	runtime.KeepAlive(burst)
	full = anonymous(t)
	burst = nil //nolint:ineffassign,wastedassign // the collector may have it
	trimmer.touch()
	for end := time.Now().Add(2 * quiet); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if anonymous(t) < full-size/2 {
			t.Fatal("memory was given back at rest")
		}
	}
	trimmer.Resume()
	for end := time.Now().Add(limit); anonymous(t) > full-size/2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d MiB are still taken after the rest, of %d at most", anonymous(t)>>20, full>>20)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	trimmer.touch() // when nobody listens any more
}

// TestTrimmerSleepsThroughABurst checks that the trimmer is woken once for many
// ends, and all the same waits for quiet after the last of them.
func TestTrimmerSleepsThroughABurst(t *testing.T) {
	leaktest.Check(t)
	const quiet = 400 * time.Millisecond
	dropped := make(chan time.Time, 1)
	trimmer := newTrimmer(quiet, func() { dropped <- time.Now() })
	trimmer.touch()
	<-trimmer.bell
	for range 10 {
		trimmer.touch()
	}
	if len(trimmer.bell) > 0 {
		t.Error("woken for the second end of a burst")
	}
	trimmer.bell <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- trimmer.run(ctx) }()
	var last time.Time
	for range 6 {
		time.Sleep(quiet / 4)
		last = time.Now()
		trimmer.touch()
	}
	select {
	case at := <-dropped:
		if at.Sub(last) < quiet {
			t.Errorf("dropped %v after the last end, want %v of quiet", at.Sub(last), quiet)
		}
	case <-time.After(limit):
		t.Error("nothing was dropped")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
