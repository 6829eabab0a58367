// Package vfork makes a process that makes a list of system calls, of which the
// last is execve(2).
//
// syscall.ForkExec does that as well, in a way that a daemon cannot live with:
// its thread counts as running Go code while it waits for the new process to
// have another program. Where that takes for ever, in a frozen cgroup or on a
// file system whose server is gone, the next collection of the garbage waits as
// long, and with it the whole program. It also forks one process at a time.
// Here the wait is a system call like others, and any number may be under way.
//
// The new process shares the memory of the old one until it has its program,
// and therefore runs no Go code: its calls are prepared before, and thirty
// instructions go through them. Their cost is that of the calls.
//
// It does not get a copy of all descriptors, to close them again on exec: with
// 3,000 open, that is two thirds of what a start takes. It shares the table, and
// its first act is to take a copy of the low end (close_range(2), Linux 5.9).
//
// The package imports nothing, so that it is initialized before package syscall:
// see FileLimit.
package vfork

import "unsafe"

// Call is a system call of the new process.
type Call struct {
	Number uintptr
	Args   [5]uintptr
	// MayFail, when not 0, makes the process go on although the call fails.
	MayFail uintptr
}

// Process is one that is being made. The kernel writes Pid and Pidfd before the
// process runs: who looks meanwhile does so atomically.
type Process struct {
	Pid   int32
	Pidfd int32
	// Step is the index in the calls of the one that failed, or -1 when the
	// descriptors could not be had; Errno is how. They are valid after Start,
	// when Errno is not 0.
	Step  int
	Errno uintptr

	failure failure
	args    cloneArgs
}

// failure is written by the new process.
type failure struct {
	errno uintptr
	left  uintptr // calls, with the one that failed; one more: none was made
}

// cloneArgs is struct clone_args.
type cloneArgs struct {
	flags      uint64
	pidfd      uint64 // where to write it
	_          uint64 // child_tid
	parentTID  uint64 // where to write the pid
	exitSignal uint64
	_          [5]uint64 // stack, stack_size: that of the caller; tls, set_tid, set_tid_size
	cgroup     uint64
}

// From linux/sched.h.
const (
	cloneVM           = 0x100
	cloneFiles        = 0x400
	clonePidfd        = 0x1000
	cloneVfork        = 0x4000
	cloneParentSetTID = 0x100000
	cloneClearSighand = 1 << 32 // Linux 5.5
	cloneIntoCgroup   = 1 << 33 // Linux 5.7

	sigchld = 17
)

// Start makes the process, in the cgroup whose directory is open as cgroup or,
// when that is negative, in this one's. Of the descriptors, it has those below
// files. Start returns when the process has its program, or has ended. What the
// calls point to has to stay where it is, and there, until then.
//
// errno, when not 0, says why there is no process. That a call of the process
// failed says Errno: it has ended then, and is still to be waited for.
func (p *Process) Start(cgroup, files int, calls []Call) (errno uintptr) {
	p.args = cloneArgs{
		flags:      cloneVM | cloneFiles | cloneVfork | clonePidfd | cloneParentSetTID | cloneClearSighand,
		pidfd:      uint64(uintptr(unsafe.Pointer(&p.Pidfd))),
		parentTID:  uint64(uintptr(unsafe.Pointer(&p.Pid))),
		exitSignal: sigchld,
	}
	if cgroup >= 0 {
		p.args.flags |= cloneIntoCgroup
		p.args.cgroup = uint64(cgroup)
	}
	if r := start(&p.args, uintptr(files), &calls[0], uintptr(len(calls)), &p.failure); int(r) < 0 {
		return -r
	}
	if p.Errno = p.failure.errno; p.Errno != 0 {
		p.Step = len(calls) - int(p.failure.left)
	}
	return 0
}

// start is clone as the runtime wants system calls that may block to be made.
// Between its two calls the stack must not grow.
//
//go:nosplit
//go:norace
func start(args *cloneArgs, files uintptr, calls *Call, n uintptr, failed *failure) uintptr {
	entersyscall()
	r := clone(args, files, calls, n, failed)
	exitsyscall()
	return r
}

// clone is clone3(2). In the new process it does not return. That its arguments
// escape, for all the compiler knows, keeps them from being on a stack, which may
// move.
func clone(args *cloneArgs, files uintptr, calls *Call, n uintptr, failed *failure) uintptr

// prlimit is prlimit64(2) of this process, without a new limit.
//
//go:noescape
func prlimit(resource uintptr, old *[2]uint64) uintptr

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

const rlimitNofile = 7

// FileLimit is the soft limit on open files that this process was started with,
// for its children: package syscall raises it to the hard one when it is
// initialized. Packages are initialized in the order of their paths once their
// imports are, and this one has none.
var FileLimit = func() uint64 {
	var limit [2]uint64           // soft, hard
	prlimit(rlimitNofile, &limit) // cannot fail: the resource exists
	return limit[0]
}()
