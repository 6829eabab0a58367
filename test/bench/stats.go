package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// median answers the middle of values, which it sorts.
func median[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cpuTime answers the processor time that a process has used, in nanoseconds
// where /proc/pid/stat counts in ticks. The clock's number is made as
// clock_getcpuclockid(3) makes it; children do not count.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED, linux/posix-timers.h
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
		return 0, fmt.Errorf("read processor clock of %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// anonymous answers the anonymous memory of a process, in KiB.
func anonymous(pid int) (float64, error) {
	return procField(pid, "smaps_rollup", "Anonymous:")
}

// threads answers how many threads a process has.
func threads(pid int) (float64, error) {
	return procField(pid, "status", "Threads:")
}

// procField reads a number from a file of "key: value" lines.
func procField(pid int, file, key string) (float64, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, file)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("read %s: not in %s", key, path)
}
