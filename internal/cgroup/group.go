package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	return g.killEach()
}

// killEach is Kill for kernels without cgroup.kill, or for a group that is
// gone already: it kills what is listed until nothing is.
func (g *Group) killEach() error {
	for end := time.Now().Add(killLimit); time.Now().Before(end); {
		b, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list cgroup %s: %w", g.path, err)
		}
		pids := strings.Fields(string(b))
		if len(pids) == 0 {
			return nil
		}
		for _, s := range pids {
			if pid, err := strconv.Atoi(s); err == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		// SIGKILL takes effect when the victim is next scheduled.
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("kill cgroup %s: processes left after %v", g.path, killLimit)
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

// remove removes the directory and tells whether it is gone. A group that
// holds only zombies counts as empty.
func (g *Group) remove() bool {
	if err := unix.Rmdir(g.path); err != nil && !errors.Is(err, unix.ENOENT) {
		return false
	}
	if g.dir != nil {
		_ = g.dir.Close()
	}
	return true
}

func (g *Group) write(file, value string) error {
	fd, err := unix.Open(filepath.Join(g.path, file), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %q to %s: %w", value, file, err)
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
