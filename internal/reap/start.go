package reap

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// Credential is who a child runs as. Groups are its supplementary groups; nil
// means none, never the daemon's.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}

// Command says what to start. It is complete: nothing is inherited or filled in.
type Command struct {
	Path string   // program; relative means relative to Dir
	Args []string // argv, with argv[0]
	Env  []string
	Dir  string
	User Credential

	// Stdin, Stdout and Stderr become descriptors 0, 1 and 2, the only ones
	// the child gets. The caller keeps and closes its own copies.
	Stdin, Stdout, Stderr *os.File
	// TTY makes Stdin the controlling terminal of the child's session.
	TTY bool
	// Cgroup is the directory of the cgroup to start in, nil to stay.
	Cgroup *os.File
}

// Start runs cmd as the leader of a session of its own, at nice 0, best-effort
// I/O of level 4 and an oom_score_adj of 100, all in force before its first
// instruction. It costs one exec.
//
// An error is a syscall.Errno of the step that failed; which step it was, the
// kernel does not tell.
func (r *Reaper) Start(cmd Command) (*Child, error) {
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
		Files: []uintptr{cmd.Stdin.Fd(), cmd.Stdout.Fd(), cmd.Stderr.Fd()},
		Sys:   sys,
	}

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
