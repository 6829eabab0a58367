package metrics

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// jiffy is the unit of /proc/stat: USER_HZ is 100 on every architecture that
// we build for (time(7)).
const jiffy = time.Second / 100

// modes are the columns of /proc/stat, in order (proc_stat(5)). Time of guests
// is in user and nice already.
var modes = [...]string{"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"}

// CPU is processor time since boot, of all processors together.
type CPU struct {
	Count int // processors online
	Time  [len(modes)]time.Duration
}

// Modes calls f for each kind of time.
func (c CPU) Modes(f func(mode string, d time.Duration)) {
	for i, mode := range modes {
		f(mode, c.Time[i])
	}
}

// busy is the time in which somebody had something to do, and all time.
func (c CPU) busy() (busy, total time.Duration) {
	for i, d := range c.Time {
		total += d
		if modes[i] != "idle" && modes[i] != "iowait" {
			busy += d
		}
	}
	return busy, total
}

// ReadCPU reads /proc/stat.
func ReadCPU() (CPU, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPU{}, fmt.Errorf("read processor time: %w", err)
	}
	return parseStat(b)
}

func parseStat(b []byte) (c CPU, err error) {
	found := false
	for line := range bytes.Lines(b) {
		name, rest, ok := bytes.Cut(line, []byte{' '})
		if !bytes.HasPrefix(name, []byte("cpu")) || !ok {
			if found {
				break // the processors come first
			}
			continue
		}
		if len(name) > len("cpu") {
			c.Count++
			continue
		}
		found = true
		fields := bytes.Fields(rest)
		// Old kernels have fewer columns.
		for i := range min(len(fields), len(modes)) {
			n, err := strconv.ParseUint(string(fields[i]), 10, 64)
			if err != nil || n > uint64(1<<62/jiffy) {
				return CPU{}, fmt.Errorf("read processor time: column %d of /proc/stat is %q", i, fields[i])
			}
			c.Time[i] = time.Duration(n) * jiffy
		}
	}
	if !found {
		return CPU{}, fmt.Errorf("read processor time: no cpu line in /proc/stat")
	}
	return c, nil
}

// leastWindow is what the use of the processor is measured over at least.
const leastWindow = time.Second

// Usage remembers processor time between calls. All methods may be called from
// any goroutine; the zero value is ready, and measures since boot at first.
type Usage struct {
	mu sync.Mutex
	// Two earlier readings: the older is at least leastWindow older than the
	// newer. Guarded by mu.
	older, newer reading
}

type reading struct {
	at  time.Time // zero: boot
	cpu CPU
}

// Percent answers which part of all processors was in use, from 0 to 100: since
// the last call, or the one before where that is less than a second ago. The
// first call measures since Begin, or since boot.
func (u *Usage) Percent(now time.Time, cpu CPU) float64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	since := u.older
	if now.Sub(u.newer.at) >= leastWindow {
		since = u.newer
		u.older, u.newer = u.newer, reading{now, cpu}
	}
	return percent(since.cpu, cpu)
}

// Begin makes the first call measure from now on.
func (u *Usage) Begin(now time.Time, cpu CPU) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.newer = reading{now, cpu}
}

func percent(from, to CPU) float64 {
	busyBefore, before := from.busy()
	busyAfter, after := to.busy()
	// A column may go back by a little: iowait does (proc_stat(5)).
	if after <= before || busyAfter <= busyBefore {
		return 0
	}
	return min(100, 100*float64(busyAfter-busyBefore)/float64(after-before))
}
