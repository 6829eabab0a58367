package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// Group is the leaf of one command. Hierarchy.Create makes it; Release gives
// it up, and it is gone once it is empty. Its methods are safe for concurrent
// use. Paths are never reused: on a group that is gone they find nothing.
type Group struct {
	h    *Hierarchy
	path string
	dir  *os.File // for clone only; closed with the group
	gone func()   // of Release; called by whoever removed the directory
}

// Dir is the group's directory, to clone a child into before Release.
func (g *Group) Dir() *os.File { return g.dir }

// killLimit bounds killing process by process; what is left after it cannot be
// killed, such as a process in uninterruptible sleep.
const killLimit = 5 * time.Second

// Kill sends SIGKILL to every process in the group, whatever it calls itself.
// One that is forking meanwhile does not escape (cgroup.kill, Linux 5.14).
func (g *Group) Kill() error {
	err := g.write("cgroup.kill", "1")
	switch {
	case errors.Is(err, unix.ENODEV): // removed since it was opened
		return nil
	case errors.Is(err, unix.ENOENT):
		return g.killEach()
	}
	return err
}

// killEach is Kill for kernels without cgroup.kill, or for a group that is
// gone already: it kills what is listed until nothing is.
func (g *Group) killEach() error {
	for end := time.Now().Add(killLimit); time.Now().Before(end); {
		left, err := g.killListed()
		if err != nil || left == 0 {
			return err
		}
		// SIGKILL takes effect when the victim is next scheduled.
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("kill cgroup %s: processes left after %v", g.path, killLimit)
}

// killListed kills what is in the group at the moment and answers how many
// that were. What is listed again after its pidfd was opened is what the pidfd
// names: the number cannot have been given to a process elsewhere.
func (g *Group) killListed() (n int, err error) {
	first, err := g.pids()
	if err != nil {
		return 0, err
	}
	pidfds := make(map[int]int, len(first))
	for pid := range first {
		if fd, err := linux.OpenPidfd(pid); err == nil { // else it has ended
			defer unix.Close(fd)
			pidfds[pid] = fd
		}
	}
	again, err := g.pids()
	if err != nil {
		return 0, err
	}
	for pid := range again {
		if fd, ok := pidfds[pid]; ok {
			_ = linux.SignalPidfd(fd, unix.SIGKILL) // or it has ended
		}
	}
	return len(again), nil
}

// pids lists the processes of the group and of those that were made below it.
func (g *Group) pids() (map[int]bool, error) {
	pids := make(map[int]bool)
	err := filepath.WalkDir(g.path, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "cgroup.procs" {
			var b []byte
			b, err = os.ReadFile(path)
			for s := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(s); err == nil && pid > 0 {
					pids[pid] = true
				}
			}
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return nil // removed meanwhile
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list cgroup %s: %w", g.path, err)
	}
	return pids, nil
}

// Removed tells whether somebody else removed the group before its Release. To
// clone into it fails with ENOENT or ENODEV then.
func (g *Group) Removed() bool {
	var st unix.Stat_t
	return errors.Is(unix.Stat(g.path, &st), unix.ENOENT)
}

// AwaitEmpty waits until no process is left in the group, and tells whether
// that came true within limit.
func (g *Group) AwaitEmpty(limit time.Duration) bool {
	end := time.Now().Add(limit)
	for pause := 50 * time.Microsecond; g.Populated(); pause = min(2*pause, 10*time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// Populated tells whether a process is left in the group.
func (g *Group) Populated() bool {
	b, err := g.read("cgroup.events")
	return err == nil && strings.Contains(b, "populated 1")
}

// Usage is what everything in the group used so far.
type Usage struct {
	User, System time.Duration
	PeakMemory   int64 // bytes; 0 without the memory controller
	OOMKills     int64
}

// Usage reads the group's account.
func (g *Group) Usage() (Usage, error) {
	var u Usage
	b, err := g.read("cpu.stat")
	if err != nil {
		return u, err
	}
	keyed(b, func(key string, n uint64) {
		switch key {
		case "user_usec":
			u.User = time.Duration(n) * time.Microsecond
		case "system_usec":
			u.System = time.Duration(n) * time.Microsecond
		}
	})
	if !g.h.controllers["memory"] {
		return u, nil
	}
	// memory.peak came with Linux 5.19; 0 says unknown.
	if b, err := g.read("memory.peak"); err == nil {
		u.PeakMemory, _ = strconv.ParseInt(strings.TrimSpace(b), 10, 64)
	}
	if b, err = g.read("memory.events"); err != nil {
		return u, err
	}
	keyed(b, func(key string, n uint64) {
		if key == "oom_kill" {
			u.OOMKills = int64(n)
		}
	})
	return u, nil
}

// Release gives the group up: it is removed now when it is empty, and else
// when its last process ends. Then gone is called, here or on the hierarchy's
// goroutine. The caller calls Release once.
func (g *Group) Release(gone func()) {
	g.gone = gone
	if g.remove() {
		gone()
		return
	}
	if g.watchEmpty() {
		gone()
	}
}

// watchEmpty has the hierarchy remove the group when it is empty. It tells
// whether the group is gone already.
func (g *Group) watchEmpty() bool {
	h := g.h
	h.mu.Lock()
	defer h.mu.Unlock()
	wd, err := h.watch(filepath.Join(g.path, "cgroup.events"))
	if err != nil {
		// Out of watches: the next sweep for another group finds it.
		wd = -int32(h.next.Add(1))
	}
	// It may have become empty before the watch was there.
	if g.remove() {
		h.unwatch(wd)
		return true
	}
	h.busy[wd] = g
	return false
}

func (h *Hierarchy) watch(file string) (wd int32, err error) {
	rc, err := h.events.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := rc.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), file, unix.IN_MODIFY)
		wd = int32(n)
	})
	return wd, errors.Join(ctlErr, err)
}

// unwatch gives a watch back: on a cgroup's file the kernel keeps it when the
// file is gone.
func (h *Hierarchy) unwatch(wd int32) {
	rc, err := h.events.SyscallConn()
	if err != nil || wd < 0 {
		return
	}
	// Closed: then all watches are gone.
	_ = rc.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) })
}

// remove removes the directory and tells whether it is gone. A group that
// holds only zombies counts as empty.
func (g *Group) remove() bool {
	err := unix.Rmdir(g.path)
	if errors.Is(err, unix.EBUSY) && !g.Populated() {
		removeBelow(g.path)
		err = unix.Rmdir(g.path)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false
	}
	if g.dir != nil {
		_ = g.dir.Close()
	}
	return true
}

// removeBelow removes the groups that a command made below its own.
func removeBelow(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			sub := filepath.Join(dir, e.Name())
			removeBelow(sub)
			_ = unix.Rmdir(sub) // a busy one stays
		}
	}
}

func (g *Group) write(file, value string) error {
	return writeFile(filepath.Join(g.path, file), value)
}

// writeFile writes value to a control file in one write.
func writeFile(file, value string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", filepath.Base(file), err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %q to %s: %w", value, filepath.Base(file), err)
	}
	return nil
}

// read answers a small file of the group in one read.
func (g *Group) read(file string) (string, error) {
	fd, err := unix.Open(filepath.Join(g.path, file), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", file, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return string(buf[:n]), nil
}
