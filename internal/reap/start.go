package reap

import (
	"errors"
	"os"
	"time"

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
	Stdin, Stdout, Stderr linux.Descriptor
	// TTY makes Stdin the controlling terminal of the child's session.
	TTY bool
	// Cgroup is the directory of the cgroup to start in, nil to stay.
	Cgroup *os.File
}

// ErrStuck is returned for a program that the kernel does not get to run: on a
// file system that does not answer, say, or in a frozen cgroup.
var ErrStuck = errors.New("no exec within " + execLimit.String())

// execLimit is how long a child may take to its program, before it is killed. An
// exec takes a millisecond.
const execLimit = 10 * time.Second

// childScore is the oom_score_adj of every child: before the daemon, after
// nothing. The wire contract fixes it.
const childScore = "100"

// Start runs cmd as the leader of a session of its own, at nice 0, best-effort
// I/O of level 4 and an oom_score_adj of 100, all in force before its first
// instruction. It costs one exec, and holds nobody up but its caller.
//
// An error is a syscall.Errno of the step that failed, or ErrStuck.
func (r *Reaper) Start(cmd Command) (*Child, error) {
	if r.old.Load() {
		return r.forkExec(&cmd)
	}
	files, err := r.slots.take([3]int{int(cmd.Stdin), int(cmd.Stdout), int(cmd.Stderr)})
	if err != nil {
		return nil, err
	}
	defer r.slots.give(files)
	b, err := newBirth(&cmd, files, r.files, r.own)
	if err != nil {
		return nil, err
	}
	r.expect(b)
	c, err := r.arrive(b, b.run(&cmd))
	if b.unborn() && kernelLacks(err) {
		r.old.Store(errors.Is(err, unix.ENOSYS))
		return r.forkExec(&cmd)
	}
	return c, err
}

// expect makes the child known before there is one: it may end, and be reaped,
// before the call that makes it has returned.
func (r *Reaper) expect(b *birth) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.births[b] = struct{}{}
	b.due = time.Now().Add(r.patience)
	if !r.watching {
		r.watching = true
		time.AfterFunc(r.patience, r.killLate)
	}
}

// GiveUp kills all children that have no program yet.
func (r *Reaper) GiveUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for b := range r.births {
		b.kill()
	}
}

// killLate kills the children that are late, and looks again when the next will
// be. It is left to run out: to set and stop a timer for each child would cost
// each start.
func (r *Reaper) killLate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	next := time.Duration(-1)
	for b := range r.births {
		switch left := b.due.Sub(now); {
		case left <= 0:
			b.kill()
		case next < 0 || left < next:
			next = left
		}
	}
	if r.watching = next >= 0; r.watching {
		time.AfterFunc(next, r.killLate)
	}
}

// arrive makes the child one like others, or sees it off after err.
func (r *Reaper) arrive(b *birth, err error) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, unreaped := r.births[b]
	delete(r.births, b)
	if err == nil && b.late {
		err = ErrStuck
	}
	switch {
	case b.pid() == 0:
		return nil, err
	case err == nil && unreaped:
		r.children[b.pid()] = b.grown()
	case unreaped:
		// It has ended, or is about to: what kept it from its program is over.
		_ = r.reap(b.pid(), b.grown())
	}
	if err != nil {
		return nil, err
	}
	return b.child, nil
}
