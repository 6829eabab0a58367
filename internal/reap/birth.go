package reap

import (
	"math"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
	"github.com/wrenn/envd/internal/vfork"
)

// birth is a child on its way to its program.
type birth struct {
	child   *Child
	process vfork.Process
	files   slot         // what becomes its descriptors 0, 1 and 2
	calls   []vfork.Call // what the child does, the last of which is execve
	kept    []any        // what calls point to
	due     time.Time    // when it is late; guarded by Reaper.mu
	late    bool         // it was killed, since it took too long; guarded by Reaper.mu
}

// newBirth prepares all that the child is going to do.
func newBirth(cmd *Command, files slot, limit unix.Rlimit, daemon ids) (*birth, error) {
	b := &birth{child: &Child{pidfd: -1, done: make(chan struct{})}, files: files, calls: make([]vfork.Call, 0, 20)}
	b.call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, keep(b, new(uint64)), 0, 8)
	b.descriptors()
	b.call(unix.SYS_SETSID)
	b.priorities()
	b.user(&cmd.User, daemon)
	dir, err := b.string(cmd.Dir)
	if err != nil {
		return nil, err
	}
	b.call(unix.SYS_CHDIR, dir)
	if cmd.TTY {
		b.call(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 1)
	}
	if l := limit; l.Cur != l.Max {
		b.call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, keep(b, &l))
	}
	return b, b.exec(cmd)
}

// firstFree is the lowest descriptor that a child has not open.
const firstFree = 3

// descriptors leaves the child with three. What else is open is closed at once,
// not by the exec: it may be the end of another's pipe, and the exec take long.
func (b *birth) descriptors() {
	for i, fd := range b.files.fds {
		b.call(unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	b.call(unix.SYS_CLOSE_RANGE, firstFree, math.MaxUint32, 0)
}

// scoreFile is the child's own, whose mount may be missing.
const scoreFile = "/proc/self/oom_score_adj"

// priorities are set before the change of user, who may not raise them. None is
// worth a failure: a daemon that is not root and was itself started niced cannot.
func (b *birth) priorities() {
	path, _ := b.string(scoreFile)
	score, _ := b.string(childScore)
	here := unix.AT_FDCWD
	b.try(unix.SYS_OPENAT, uintptr(here), path, unix.O_WRONLY|unix.O_NONBLOCK) // whatever is there, it does not wait
	b.try(unix.SYS_WRITE, firstFree, score, uintptr(len(childScore)))
	b.try(unix.SYS_CLOSE, firstFree)
	b.try(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, 0)
	b.try(unix.SYS_IOPRIO_SET, linux.IOPrioProcess, 0, linux.IOPrioDefault)
}

// ids are those that a child has from the start: the daemon's. One of which the
// real, the effective and the saved differ is -1, which is nobody's.
type ids struct{ user, group int }

func ownIDs() ids {
	same := func(own, effective, saved int) int {
		if own != effective || own != saved {
			return -1
		}
		return own
	}
	return ids{same(unix.Getresuid()), same(unix.Getresgid())}
}

// user leaves out the calls that would change nothing: each makes the kernel copy
// all that it knows of who the process is, and free it when nobody looks any more.
func (b *birth) user(u *Credential, daemon ids) {
	if os.Geteuid() == 0 { // else it can only be the daemon's own
		groups := append([]uint32{}, u.Groups...)
		groups = append(groups, 0) // so that there is a first
		b.call(unix.SYS_SETGROUPS, uintptr(len(u.Groups)), keep(b, &groups[0]))
	}
	if int(u.GID) != daemon.group {
		b.call(unix.SYS_SETGID, uintptr(u.GID))
	}
	if int(u.UID) != daemon.user {
		b.call(unix.SYS_SETUID, uintptr(u.UID))
	}
}

func (b *birth) exec(cmd *Command) error {
	path, err := b.string(cmd.Path)
	if err != nil {
		return err
	}
	args, err := b.strings(cmd.Args)
	if err != nil {
		return err
	}
	env, err := b.strings(cmd.Env)
	if err != nil {
		return err
	}
	b.call(unix.SYS_EXECVE, path, args, env)
	return nil
}

func (b *birth) call(number uintptr, args ...uintptr) {
	c := vfork.Call{Number: number}
	copy(c.Args[:], args)
	b.calls = append(b.calls, c)
}

// try is call for what may fail.
func (b *birth) try(number uintptr, args ...uintptr) {
	b.call(number, args...)
	b.calls[len(b.calls)-1].MayFail = 1
}

// keep answers the address of what p points to, which b keeps in its place.
func keep[T any](b *birth, p *T) uintptr {
	b.kept = append(b.kept, p)
	return uintptr(unsafe.Pointer(p))
}

// string fails with EINVAL when there is a NUL in s.
func (b *birth) string(s string) (uintptr, error) {
	p, err := syscall.BytePtrFromString(s)
	if err != nil {
		return 0, err
	}
	return keep(b, p), nil
}

func (b *birth) strings(s []string) (uintptr, error) {
	p, err := syscall.SlicePtrFromStrings(s)
	if err != nil {
		return 0, err
	}
	return keep(b, &p[0]), nil
}

// run makes the child and waits until it has its program or has failed. Its
// error is an errno: without a pid, of clone; else of a call of the child's.
func (b *birth) run(cmd *Command) error {
	cgroup := -1
	if cmd.Cgroup != nil {
		cgroup = int(cmd.Cgroup.Fd())
	}
	errno := b.process.Start(cgroup, slices.Max(b.files.fds[:])+1, b.calls)
	runtime.KeepAlive(b)
	runtime.KeepAlive(cmd)
	if errno == 0 {
		errno = b.process.Errno
	}
	if errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// pid is the child's process id, or 0 while it has none.
func (b *birth) pid() int { return int(atomic.LoadInt32(&b.process.Pid)) }

// unborn tells, once run has failed, whether not even the first of the child's
// calls was made.
func (b *birth) unborn() bool { return b.pid() == 0 || b.process.Step < 0 }

// kill kills the child on its way, if there is one. The caller holds Reaper.mu,
// and b is not over.
func (b *birth) kill() {
	if b.pid() != 0 {
		b.late = true
		_ = linux.SignalPidfd(int(atomic.LoadInt32(&b.process.Pidfd)), unix.SIGKILL)
	}
}

// grown tells the child who it is. The caller holds Reaper.mu.
func (b *birth) grown() *Child {
	b.child.pid, b.child.pidfd = b.pid(), int(atomic.LoadInt32(&b.process.Pidfd))
	return b.child
}
