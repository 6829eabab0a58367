package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// capacity is what there is to share.
type capacity struct {
	memory int64 // bytes
	pids   int64 // process and thread numbers
}

// setting is a value for a control file of one of our groups.
type setting struct {
	controller  string
	group, file string
	value       string
}

const (
	// The part of memory that commands do not get is an eighth, within these
	// bounds, in bytes. It holds the daemon (some 20 MiB), the kernel's own and
	// what other services of the image need.
	leastReserve = 32 << 20
	mostReserve  = 256 << 20
	// pidShare is the part of the process numbers that each class gets, in
	// eighths: a fork bomb leaves some for the daemon's threads.
	pidShare = 7
)

// guard says how the groups share: a terminal before other commands, and the
// daemon before both. Weights are relative to the kernel's default of 100.
//
// The classes' memory.high lies just below memory.max: close to the limit the
// kernel reclaims early, but a program that goes on is not slowed down for
// minutes before it is killed. memory.min keeps the daemon's pages, its program
// text first of all, from being reclaimed; it is of use only if the group above
// has it, too.
func guard(c capacity) []setting {
	s := []setting{
		{"cpu", system, "cpu.weight", "1000"},
		{"cpu", string(PTY), "cpu.weight", "200"},
		{"cpu", string(User), "cpu.weight", "100"},
		{"io", system, "io.weight", "1000"},
		{"io", string(PTY), "io.weight", "200"},
		{"io", string(User), "io.weight", "100"},
	}
	if reserve := min(max(c.memory/8, leastReserve), mostReserve); c.memory > 2*reserve {
		most := c.memory - reserve
		s = append(s,
			setting{"memory", "", "memory.min", number(reserve / 2)},
			setting{"memory", system, "memory.min", number(reserve / 2)})
		for _, class := range []Class{PTY, User} {
			s = append(s,
				setting{"memory", string(class), "memory.high", number(most - reserve/8)},
				setting{"memory", string(class), "memory.max", number(most)})
		}
	}
	if c.pids > 0 {
		for _, class := range []Class{PTY, User} {
			s = append(s, setting{"pids", string(class), "pids.max", number(c.pids / 8 * pidShare)})
		}
	}
	return s
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// guard applies the settings whose controllers are there. What this kernel has
// not (io.weight needs a scheduler that knows it) or refuses is left as it was:
// the groups then share as the kernel has it by default.
func (h *Hierarchy) guard() {
	for _, s := range guard(h.capacity()) {
		if h.controllers[s.controller] {
			_ = writeFile(filepath.Join(h.dir, s.group, s.file), s.value)
		}
	}
}

// capacity is that of the machine, or of the root group where that has less.
func (h *Hierarchy) capacity() capacity {
	var c capacity
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		c.memory = int64(info.Totalram) * int64(info.Unit)
	}
	c.memory = lower(c.memory, filepath.Join(h.root, "memory.max"))
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max", filepath.Join(h.root, "pids.max")} {
		c.pids = lower(c.pids, file)
	}
	return c
}

// lower answers the number in file if it is lower than n, or n is not known.
// "max" and what cannot be read are no number.
func lower(n int64, file string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return n
	}
	m, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n > 0 && n < m {
		return n
	}
	return m
}
