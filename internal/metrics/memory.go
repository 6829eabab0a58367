package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Memory is the machine's, in bytes.
type Memory struct {
	Total uint64
	Used  uint64 // what programs could not get: all but MemAvailable
	Cache uint64 // of files, and what the kernel can take back
}

// ReadMemory reads /proc/meminfo.
func ReadMemory() (Memory, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Memory{}, fmt.Errorf("read memory: %w", err)
	}
	return parseMeminfo(b)
}

func parseMeminfo(b []byte) (Memory, error) {
	var total, free, available, buffers, cached, reclaimable uint64
	known := map[string]*uint64{
		"MemTotal": &total, "MemFree": &free, "MemAvailable": &available,
		"Buffers": &buffers, "Cached": &cached, "SReclaimable": &reclaimable,
	}
	hasAvailable := false
	for line := range bytes.Lines(b) {
		name, rest, ok := bytes.Cut(line, []byte{':'})
		into := known[string(name)]
		if !ok || into == nil {
			continue
		}
		kib, err := number(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte(" kB")), 1<<10)
		if err != nil {
			return Memory{}, fmt.Errorf("read memory: %s: %w", name, err)
		}
		*into = kib
		hasAvailable = hasAvailable || string(name) == "MemAvailable"
	}
	if total == 0 {
		return Memory{}, errors.New("read memory: no MemTotal in /proc/meminfo")
	}
	m := Memory{Total: total, Cache: cached + reclaimable}
	if !hasAvailable { // before Linux 3.14
		available = free + buffers + m.Cache
	}
	m.Used = total - min(total, available)
	return m, nil
}

// number reads a decimal number of units of that size.
func number(b []byte, unit uint64) (uint64, error) {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil || n > 1<<62/unit {
		return 0, fmt.Errorf("%q is not a number", b)
	}
	return n * unit, nil
}

// Disk is a filesystem's space, in bytes.
type Disk struct{ Total, Used uint64 }

// ReadDisk asks for the filesystem at path.
func ReadDisk(path string) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Disk{}, fmt.Errorf("read space of %s: %w", path, err)
	}
	size := uint64(st.Bsize)
	if st.Frsize > 0 {
		size = uint64(st.Frsize)
	}
	return Disk{Total: st.Blocks * size, Used: (st.Blocks - min(st.Blocks, st.Bfree)) * size}, nil
}
