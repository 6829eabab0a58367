package ports

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkLook is a look that finds nothing new.
func BenchmarkLook(b *testing.B) {
	f := startForwarder(b)
	f.mu.Lock()
	defer f.mu.Unlock()
	for b.Loop() {
		must(b, f.refreshLocked())
	}
}

// BenchmarkLookPaced is what looks cost at the pace of a busy daemon.
func BenchmarkLookPaced(b *testing.B) {
	startForwarder(b)
	used := func() time.Duration {
		var ru unix.Rusage
		must(b, unix.Getrusage(unix.RUSAGE_SELF, &ru))
		return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	before, began := used(), time.Now()
	for b.Loop() {
		time.Sleep(4 * time.Second)
	}
	b.ReportMetric(float64((used()-before).Microseconds())/time.Since(began).Seconds(), "µs/s")
}
