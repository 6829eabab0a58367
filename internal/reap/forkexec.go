package reap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// kernelLacks tells whether err is what a kernel before Linux 5.9 says, or a
// container that does not let clone3(2) or close_range(2) through.
func kernelLacks(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.EPERM)
}

// forkExec is Start by the standard library, with its weakness: a program that
// the kernel does not get to run holds everything up. See package vfork.
func (r *Reaper) forkExec(cmd *Command) (*Child, error) {
	pidfd := -1
	sys := &syscall.SysProcAttr{
		Setsid:  true,
		Setctty: cmd.TTY,
		PidFD:   &pidfd,
		Credential: &syscall.Credential{
			Uid: cmd.User.UID, Gid: cmd.User.GID, Groups: cmd.User.Groups,
			// A daemon that is not root can only start programs as itself.
			NoSetGroups: os.Geteuid() != 0,
		},
	}
	if cmd.Cgroup != nil {
		sys.UseCgroupFD = true
		sys.CgroupFD = int(cmd.Cgroup.Fd())
	}
	attr := &syscall.ProcAttr{
		Dir:   cmd.Dir,
		Env:   cmd.Env,
		Files: []uintptr{uintptr(cmd.Stdin), uintptr(cmd.Stdout), uintptr(cmd.Stderr)},
		Sys:   sys,
	}

	// On a file system that does not answer this holds up nobody else; ForkExec
	// would. What it finds ForkExec tells.
	program := cmd.Path
	if !filepath.IsAbs(program) {
		program = filepath.Join(cmd.Dir, program)
	}
	var st unix.Stat_t
	_ = unix.Stat(cmd.Dir, &st)
	_ = unix.Stat(program, &st)

	r.mu.Lock()
	defer r.mu.Unlock()
	// What fork copies from the thread has to be right on this thread. It is
	// locked after the mutex: waiting on a locked thread costs two switches.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Refused only to a daemon that is not root and was itself started niced;
	// its children then stay as they are.
	_ = linux.NormalThread()

	if r.score == nil {
		r.score = openScore()
	}
	r.score.lend()
	pid, err := syscall.ForkExec(cmd.Path, cmd.Args, attr)
	r.score.restore()
	runtime.KeepAlive(cmd)
	if err != nil {
		return nil, err
	}
	if pidfd < 0 {
		// Before Linux 5.2, or 5.7 with a cgroup. The child cannot have been
		// reaped: that takes the lock.
		if pidfd, err = linux.OpenPidfd(pid); err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			return nil, fmt.Errorf("start: %w", err)
		}
	}
	c := &Child{pid: pid, pidfd: pidfd, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}
