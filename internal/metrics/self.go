package metrics

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Self is what this process uses.
type Self struct {
	CPU         time.Duration
	Resident    uint64 // bytes of memory
	Anonymous   uint64 // bytes of it that no file holds
	Heap        uint64 // bytes of live and dead objects
	Threads     uint64
	Goroutines  uint64
	Descriptors int
}

// ReadSelf reads what this process uses.
func ReadSelf() (Self, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Self{}, fmt.Errorf("read own use: %w", err)
	}
	s, err := parseStatus(b)
	if err != nil {
		return Self{}, err
	}
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return Self{}, fmt.Errorf("read own use: %w", err)
	}
	s.CPU = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return Self{}, fmt.Errorf("read own use: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return Self{}, fmt.Errorf("read own use: %w", err)
	}
	s.Descriptors = len(names) - 1 // without the directory's
	// Not of runtime/metrics: preparing it takes 0.1 ms of every start.
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	s.Goroutines, s.Heap = uint64(runtime.NumGoroutine()), mem.HeapAlloc
	return s, nil
}

// parseStatus reads /proc/PID/status.
func parseStatus(b []byte) (s Self, err error) {
	for line := range bytes.Lines(b) {
		name, rest, _ := bytes.Cut(line, []byte{':'})
		value := bytes.TrimSpace(rest)
		switch string(name) {
		case "VmRSS":
			s.Resident, err = number(bytes.TrimSuffix(value, []byte(" kB")), 1<<10)
		case "RssAnon":
			s.Anonymous, err = number(bytes.TrimSuffix(value, []byte(" kB")), 1<<10)
		case "Threads":
			s.Threads, err = number(value, 1)
		}
		if err != nil {
			return Self{}, fmt.Errorf("read own use: %s: %w", name, err)
		}
	}
	return s, nil
}
