package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/linux"
	"github.com/wrenn/envd/internal/reap"
)

// ErrFinished is returned for a process that has ended.
var ErrFinished = errors.New("process has ended")

// Process is a started command. Table.Start makes it; it ends by itself.
type Process struct {
	Name    string // Spec.Name
	Tag     string // "" when HasTag is false
	HasTag  bool
	Started time.Time

	serial   uint64
	table    *Table
	child    *reap.Child
	group    *cgroup.Group // nil without cgroups
	mark     string        // names the tree without cgroups; else ""
	out      *Output
	bell     <-chan struct{} // of the pumps
	terminal bool

	exited  chan struct{} // closed when the leader was reaped
	settled chan struct{} // closed when nothing is left: no output, no descendant
	overdue chan struct{} // closed when the timeout has done its work
	endedAt time.Time     // when the end was in the log; guarded by table.mu

	mu       sync.Mutex
	input    *input           // guarded by mu, as is all below; nil without stdin, and after the exit
	pumps    []*pump          // nil once settled
	open     int              // pumps that have not ended
	timedOut bool             // the timeout killed the tree
	ending   bool             // somebody records the end, or has
	exit     *Exit            // set once the end is in the log
	left     bool             // the end is being recorded, or the group is there still
	tty      linux.Descriptor // the child's side of the terminal; -1 without, and after the exit
	over     bool             // no timers any more
	stops    []func()         // of timers
}

// Pid is the leader's process id.
func (p *Process) Pid() int { return p.child.Pid() }

// Label is that of the Spec; nil when it was given up with the output.
func (p *Process) Label() any { return p.out.carried() }

// Attach opens a cursor on the output at offset; see Output.Attach.
func (p *Process) Attach(offset int64) (*Cursor, error) { return p.out.Attach(offset) }

// Written is how many bytes of output there are so far.
func (p *Process) Written() int64 { return p.out.Written() }

// Terminal tells whether the process runs on a terminal.
func (p *Process) Terminal() bool { return p.terminal }

// Running tells whether the leader runs.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Exit is how the process ended, or nil before its end is in the log.
func (p *Process) Exit() *Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// The life of a process is driven by events, not by a goroutine that waits for
// them: the leader's exit (leaderExited), the end of each pump (pumpEnded), the
// limit on draining (drainOver) and the end of the group (groupGone). finish
// records the end and settle the end of the rest, each exactly once.

// leaderExited takes the process from running to exited. Whoever reaps calls it.
func (p *Process) leaderExited() {
	p.closeInput()
	resumed := p.out.leaderGone()
	close(p.exited)
	p.mu.Lock()
	pumps := p.pumps
	p.mu.Unlock()
	for _, pump := range pumps {
		pump.flush()
	}
	resume(resumed)
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	if open == 0 {
		p.finish(false)
		return
	}
	// The end of file comes a moment after the exit, or a descendant holds the
	// output open.
	p.after(drainPause, p.drainOver)
}

// pumpEnded says that a pump has read its last.
func (p *Process) pumpEnded() {
	p.mu.Lock()
	p.open--
	last := p.open == 0
	p.mu.Unlock()
	if last && !p.Running() {
		p.finish(false)
		p.settle()
	}
}

// drainOver finishes a process whose output has not ended by itself.
func (p *Process) drainOver() {
	p.mu.Lock()
	pumps, over := p.pumps, p.ending
	p.mu.Unlock()
	if !over {
		p.finish(drain(pumps, p.bell))
	}
}

// finish takes the process from exited to done: it puts the end into the log.
func (p *Process) finish(outputOpen bool) {
	p.mu.Lock()
	first := !p.ending
	p.ending = true
	p.mu.Unlock()
	if !first {
		return
	}
	exit := p.account(p.child.Status())
	p.mu.Lock()
	exit.OutputOpen, exit.TimedOut = outputOpen, p.timedOut
	p.exit = &exit
	p.left = true
	p.mu.Unlock()
	p.out.finish(exit)
	p.table.ended(p)
	if p.group != nil {
		p.group.Release(p.groupGone)
		return
	}
	p.groupGone()
}

// groupGone says that the end is recorded and the last process of the group, if
// there is one, has ended.
func (p *Process) groupGone() {
	p.mu.Lock()
	p.left = false
	p.mu.Unlock()
	p.settle()
}

// settle lets go, once nothing is left, of what a process needs till then.
func (p *Process) settle() {
	p.mu.Lock()
	if p.exit == nil || p.open > 0 || p.left || p.isSettled() {
		p.mu.Unlock()
		return
	}
	p.pumps = nil
	close(p.settled)
	p.mu.Unlock()
	if p.group != nil {
		p.stopTimers()
	} // else KillAfter may have descendants to find still
	p.table.settled(p)
}

// stopTimers ends the timers for good.
func (p *Process) stopTimers() {
	p.mu.Lock()
	stops := p.stops
	p.stops, p.over = nil, true
	p.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
}

// after calls f after d, unless stopTimers comes first.
func (p *Process) after(d time.Duration, f func()) {
	stop := p.table.after(d, f)
	p.mu.Lock()
	over := p.over
	if !over {
		p.stops = append(p.stops, stop)
	}
	p.mu.Unlock()
	if over {
		stop()
	}
}

// timeOut kills the tree of a leader that still runs.
func (p *Process) timeOut() {
	defer close(p.overdue)
	p.mu.Lock()
	running := p.Running()
	p.timedOut = running
	p.mu.Unlock()
	if running {
		_ = p.Kill() // finished meanwhile is fine
	}
}

// AwaitTimeout waits for the timeout, which is due, to have killed the tree. It
// takes no longer than a kill may.
func (p *Process) AwaitTimeout() {
	limit := time.NewTimer(killLimit + time.Second)
	defer limit.Stop()
	gone := p.settled // and the timer with it
	if p.group == nil {
		gone = nil // the timer goes on, and so may descendants
	}
	select {
	case <-p.overdue:
	case <-gone:
	case <-limit.C:
	}
}

// account adds up what the tree used.
func (p *Process) account(s reap.Status) Exit {
	e := Exit{Wait: s.Wait, Usage: Usage{User: s.User, System: s.System, PeakMemory: s.PeakRSS}}
	if p.group == nil {
		return e
	}
	u, err := p.group.Usage()
	if err != nil {
		return e
	}
	e.Usage.User, e.Usage.System = u.User, u.System
	e.OOMKilled = u.OOMKills > 0
	if u.PeakMemory > 0 {
		e.Usage.PeakMemory = u.PeakMemory
	}
	return e
}

func (p *Process) isSettled() bool {
	select {
	case <-p.settled:
		return true
	default:
		return false
	}
}

// killLimit bounds the wait for killed processes to be gone. What is left then
// sleeps uninterruptibly, and dies when it wakes.
const killLimit = 2 * time.Second

// Kill sends SIGKILL to the whole tree, also when only descendants are left,
// and returns when it is gone and the leader reaped. ErrFinished means that
// nothing was left.
func (p *Process) Kill() error {
	if err := p.killAll(); err != nil {
		return err
	}
	limit := time.NewTimer(killLimit) // a leader that is traced is its tracer's first
	defer limit.Stop()
	p.table.reaper.Reap() // Run may hear of it later
	select {
	case <-p.exited:
	case <-limit.C:
	}
	return nil
}

// killAll is Kill but for the reaping.
func (p *Process) killAll() error {
	if p.group == nil {
		// The tree before the leader, whose end would orphan its children.
		killed, err := killTree(p.tree())
		if leader := p.child.Signal(unix.SIGKILL); killed == 0 && err == nil {
			return finished(leader)
		}
		return err
	}
	leader := p.child.Signal(unix.SIGKILL)
	populated := p.group.Populated()
	if err := p.group.Kill(); err != nil {
		return fmt.Errorf("kill process %d: %w", p.Pid(), err)
	}
	if !populated {
		return finished(leader)
	}
	if !p.group.AwaitEmpty(killLimit) {
		return fmt.Errorf("kill process %d: some of its tree are left after %v", p.Pid(), killLimit)
	}
	return nil
}

// Signal sends sig to the leader; SIGKILL goes to the whole tree.
func (p *Process) Signal(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return p.Kill()
	}
	return finished(p.child.Signal(sig))
}

// KillAfter kills whatever is left of the tree once d is over.
func (p *Process) KillAfter(d time.Duration) {
	p.after(d, func() { _ = p.Kill() }) // finished meanwhile is fine
}

// finished turns the reaper's word for an ended child into ours.
func finished(err error) error {
	if errors.Is(err, reap.ErrFinished) || errors.Is(err, unix.ESRCH) {
		return ErrFinished
	}
	return err
}

// tree says how to find the descendants without cgroups.
func (p *Process) tree() tree {
	return tree{leader: p.Pid(), mark: p.mark, gone: func() bool {
		select {
		case <-p.child.Done():
			return true
		default:
			return false
		}
	}}
}

// WriteStdin writes to standard input, WriteTerminal to the terminal. Both
// write all of b or fail; see input.write.
func (p *Process) WriteStdin(ctx context.Context, b []byte) error {
	if p.terminal {
		return fmt.Errorf("%w: process %d runs on a terminal, send pty input", ErrWrongInput, p.Pid())
	}
	return p.write(ctx, b)
}

// WriteTerminal writes to the terminal; see WriteStdin.
func (p *Process) WriteTerminal(ctx context.Context, b []byte) error {
	if !p.terminal {
		return fmt.Errorf("%w: process %d has no terminal, send stdin input", ErrWrongInput, p.Pid())
	}
	return p.write(ctx, b)
}

func (p *Process) write(ctx context.Context, b []byte) error {
	p.mu.Lock()
	in := p.input
	p.mu.Unlock()
	if !p.Running() {
		return ErrFinished
	}
	if in == nil {
		return fmt.Errorf("%w: process %d takes no input", ErrStdinClosed, p.Pid())
	}
	err := in.write(ctx, b)
	if errors.Is(err, ErrStdinClosed) && !p.Running() {
		return ErrFinished
	}
	return err
}

// CloseStdin ends standard input. That it has ended already is fine.
func (p *Process) CloseStdin() error {
	if p.terminal {
		return fmt.Errorf("%w: a terminal has no end of input, send 0x04", ErrWrongInput)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.input == nil {
		return nil
	}
	return p.input.close()
}

// closeInput ends the input with the leader. The terminal is its pump's, which
// ends once we and all others have closed the other side.
func (p *Process) closeInput() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.input != nil && !p.terminal {
		_ = p.input.close()
	}
	p.input = nil
	if p.tty >= 0 {
		_ = p.tty.Close()
		p.tty = -1
	}
}

// Resize changes the size of the terminal; SIGWINCH follows.
func (p *Process) Resize(size Size) error {
	if !p.terminal {
		return fmt.Errorf("%w: process %d has no terminal", ErrWrongInput, p.Pid())
	}
	p.mu.Lock()
	in := p.input
	p.mu.Unlock()
	if in == nil {
		return ErrFinished
	}
	file, err := in.open()
	if err == nil {
		err = resize(file, size)
	}
	if errors.Is(err, ErrStdinClosed) || errors.Is(err, os.ErrClosed) {
		return ErrFinished
	}
	return err
}
