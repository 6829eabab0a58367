package linux

import (
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Subreap makes this process adopt the orphans among its descendants, as PID 1
// does for all.
func Subreap() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_CHILD_SUBREAPER: %w", err)
	}
	return nil
}

// MachineInit tells whether this process is the machine's PID 1, which the kernel
// never kills for want of memory. That of a container is like any other.
func MachineInit() bool {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO, linux/proc_ns.h
	if os.Getpid() != 1 {
		return false
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	return err != nil || namespace == initial // without the file there is one only
}

// I/O priority values, from linux/ioprio.h.
const (
	IOPrioProcess = 1         // who: a process
	IOPrioDefault = 2<<13 | 4 // class: best effort, of level 4
)

// NormalThread gives the calling thread what a program expects to inherit:
// nice 0, best-effort I/O of level 4 and an empty signal mask. All three
// belong to the thread on Linux and pass on through fork and exec, so the
// caller locks its goroutine to the thread first.
func NormalThread() error {
	var none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil); err != nil {
		return fmt.Errorf("empty signal mask: %w", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 0); err != nil {
		return fmt.Errorf("set nice 0: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_SET, IOPrioProcess, 0, IOPrioDefault); errno != 0 {
		return fmt.Errorf("set I/O priority: %w", errno)
	}
	return nil
}

// kernelSigaction is struct kernel_sigaction of amd64 and arm64: both have the
// restorer field.
type kernelSigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const (
	sigDefault  = 0
	sigIgnore   = 1
	lastSignal  = 64
	sigsetBytes = 8
)

// DefaultIgnoredSignals gives every signal that this process ignores its
// default action back. A daemon started in the background inherits ignored
// signals, and exec would pass them on to every child. Signals that the caller
// has a handler for are left alone, so it subscribes to its own first.
func DefaultIgnoredSignals() error {
	for sig := unix.Signal(1); sig <= lastSignal; sig++ {
		if sig == unix.SIGKILL || sig == unix.SIGSTOP {
			continue
		}
		var act kernelSigaction
		if err := sigaction(sig, nil, &act); err != nil {
			return err
		}
		if act.handler != sigIgnore {
			continue
		}
		if err := sigaction(sig, &kernelSigaction{handler: sigDefault}, nil); err != nil {
			return err
		}
	}
	return nil
}

// Disposition is what this process does with a signal.
type Disposition struct{ act kernelSigaction }

// DefaultSignal gives sig its default action, and answers what it had before. The
// runtime does not know: what it is to be told, Restore tells it again.
func DefaultSignal(sig unix.Signal) (before Disposition, err error) {
	err = sigaction(sig, &kernelSigaction{handler: sigDefault}, &before.act)
	return before, err
}

// Restore undoes DefaultSignal.
func (d Disposition) Restore(sig unix.Signal) error { return sigaction(sig, &d.act, nil) }

func sigaction(sig unix.Signal, act, old *kernelSigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), sigsetBytes, 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigaction %v: %w", sig, errno)
	}
	return nil
}

// CloseOnExecFrom marks every open descriptor from first on, so that no child
// gets what this process was itself started with (close_range(2), Linux 5.11).
func CloseOnExecFrom(first uint) error {
	if err := unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	return nil
}

// FileLimit is how many descriptors this process may have open.
func FileLimit() int { return int(min(fileLimit().Cur, math.MaxInt32)) }

// HardFileLimit is up to where programs may raise that.
func HardFileLimit() uint64 { return fileLimit().Max }

func fileLimit() (limit unix.Rlimit) {
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) // cannot fail: the resource exists
	return limit
}

// RaiseFileLimit lets this process, and its children if they ask, have n
// descriptors open.
func RaiseFileLimit(n uint64) error {
	if fileLimit().Max >= n {
		return nil
	}
	limit := unix.Rlimit{Cur: n, Max: n}
	// By itself: after unix.Setrlimit, Go would give the soft limit to children.
	_, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("set the limit on open files to %d: %w", n, errno)
	}
	return nil
}
