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
	h     *Hierarchy
	class Class
	path  string
	dir   *os.File // for clone, and Removed; closed by Entered, or when the group is given up
	gone  func()   // of Release; called by whoever removed the directory

	// What Usage reads. To open a file takes longer than to read it, so that is
	// done ahead. The memory controller's are nil without it.
	cpuStat, memoryPeak, memoryEvents *os.File
}

// Dir is the group's directory, to clone a child into before Entered.
func (g *Group) Dir() *os.File { return g.dir }

// Entered says that the child is in, and no other will be cloned.
func (g *Group) Entered() { _ = g.dir.Close() }

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

// Removed tells, before Entered, whether somebody else removed the group. To
// clone into it fails with ENOENT or ENODEV then.
func (g *Group) Removed() bool {
	// Every group has that file, and from the directory it is a short way.
	return unix.Faccessat(int(g.dir.Fd()), "cgroup.procs", unix.F_OK, 0) != nil
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

// Populated tells whether a process is left in the group. As long as the group is
// there and that cannot be told, there is one.
func (g *Group) Populated() bool {
	b, err := g.read("cgroup.events")
	if err != nil {
		return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV)
	}
	return strings.Contains(b, "populated 1")
}

// Usage is what everything in the group used so far.
type Usage struct {
	User, System time.Duration
	PeakMemory   int64 // bytes; 0 without the memory controller
	OOMKills     int64
}

// Usage reads the group's account, before Release.
func (g *Group) Usage() (Usage, error) {
	var u Usage
	b, err := readOpen(g.cpuStat)
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
	if g.memoryPeak != nil {
		if b, err := readOpen(g.memoryPeak); err == nil {
			u.PeakMemory, _ = strconv.ParseInt(strings.TrimSpace(b), 10, 64)
		}
	}
	if g.memoryEvents == nil {
		return u, nil
	}
	if b, err = readOpen(g.memoryEvents); err != nil {
		return u, err
	}
	keyed(b, func(key string, n uint64) {
		if key == "oom_kill" {
			u.OOMKills = int64(n)
		}
	})
	return u, nil
}

// Release gives the group up: it is removed a moment later when it is empty, and
// else when its last process ends. Then gone is called, on a goroutine of the
// hierarchy or, once that is closed, here. The caller calls Release once.
func (g *Group) Release(gone func()) {
	g.gone = gone
	g.h.release(g)
}

// giveUp is Release, when it is time.
func (g *Group) giveUp() {
	g.close()
	if g.remove() || g.watchEmpty() {
		g.gone()
	}
}

// Discard gives up a group that no command has, at once: nobody waits until it is
// gone, which is later when somebody has put a process of theirs into it.
func (g *Group) Discard() {
	g.gone = func() {}
	g.giveUp()
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
	return err == nil || errors.Is(err, unix.ENOENT)
}

// close closes the group's files, those that there are and are open.
func (g *Group) close() {
	for _, f := range []*os.File{g.dir, g.cpuStat, g.memoryPeak, g.memoryEvents} {
		_ = f.Close()
	}
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

// openFiles opens the directory and what Usage reads.
func (g *Group) openFiles() error {
	fd, err := unix.Open(g.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	g.dir = os.NewFile(uintptr(fd), g.path)
	if g.cpuStat, err = g.open("cpu.stat"); err != nil || !g.h.controllers["memory"] {
		return err
	}
	if g.memoryEvents, err = g.open("memory.events"); err != nil {
		return err
	}
	if g.memoryPeak, err = g.open("memory.peak"); errors.Is(err, unix.ENOENT) {
		return nil // it came with Linux 5.19
	}
	return err
}

// open opens a file of the group that is read more than once.
func (g *Group) open(file string) (*os.File, error) {
	fd, err := unix.Openat(int(g.dir.Fd()), file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	return os.NewFile(uintptr(fd), file), nil
}

// readOpen answers a small file that is open in one read.
func readOpen(f *os.File) (string, error) {
	var buf [4096]byte
	n, err := unix.Pread(int(f.Fd()), buf[:], 0) // ReadAt asks for the end as well
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
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
