// Package reap starts child processes and waits for them. It is the only code
// of the daemon that forks and the only code that waits.
//
// One Reaper lives as long as the daemon, as PID 1 or as a child subreaper, so
// every orphan below the daemon ends up here as well. A child is registered before
// it is made, and the kernel itself enters its pid before it runs: a pid that has
// ended is therefore either registered or an orphan's, and a child that exits at
// once is never mistaken. Who has ended is settled before it is reaped, so that
// its pid cannot be another's by then. No lock is held while a child is made.
//
// The package does not know what a command is: output, tags, deadlines and
// trees belong to package process.
package reap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
	"github.com/wrenn/envd/internal/vfork"
)

// ErrFinished is returned for a child that has been reaped.
var ErrFinished = errors.New("child has finished")

// Reaper is the one waiter of the process. Open creates it, Run does its work
// and Close ends it. All methods are safe for concurrent use.
type Reaper struct {
	doorbell chan os.Signal // SIGCHLD; says look, not how many

	orphans  atomic.Uint64
	old      atomic.Bool   // the kernel has no clone3(2), or no close_range(2)
	patience time.Duration // execLimit
	files    unix.Rlimit   // of a child: the daemon's, but for what Go raised
	own      ids           // of the daemon
	slots    slots         // for the descriptors of children
	hush     hush

	mu       sync.Mutex          // held while waiting
	births   map[*birth]struct{} // guarded by mu; children on the way, until reaped
	watching bool                // guarded by mu; killLate will be called
	children map[int]*Child      // guarded by mu; by pid, until reaped
	score    *score              // guarded by mu; nil before the first forkExec
}

// opened guards against a second waiter, which would steal the first one's
// children.
var opened atomic.Bool

// Open makes the process the reaper of everything below it. There can be one
// at a time.
func Open() (*Reaper, error) {
	if !opened.CompareAndSwap(false, true) {
		return nil, errors.New("open reaper: already open")
	}
	if os.Getpid() != 1 {
		if err := linux.Subreap(); err != nil {
			opened.Store(false)
			return nil, fmt.Errorf("open reaper: %w", err)
		}
	}
	r := &Reaper{
		doorbell: make(chan os.Signal, 1),
		patience: execLimit,
		files:    unix.Rlimit{Cur: vfork.FileLimit, Max: linux.HardFileLimit()},
		own:      ownIDs(),
		slots:    openSlots(linux.FileLimit()),
		births:   make(map[*birth]struct{}),
		children: make(map[int]*Child),
	}
	return r, nil
}

// Run reaps until ctx ends, and once more then. What has ended before it runs
// is reaped when it does.
func (r *Reaper) Run(ctx context.Context) error {
	signal.Notify(r.doorbell, unix.SIGCHLD)
	defer signal.Stop(r.doorbell)
	defer r.hush.end()
	for {
		r.Reap()
		select {
		case <-r.doorbell:
		case <-ctx.Done():
			r.Reap()
			return nil
		}
	}
}

// Close releases what Open acquired. Nothing is started any more; what runs is
// still reaped until Run returns.
func (r *Reaper) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	opened.Store(false)
	r.slots.close()
	return r.score.close()
}

// Orphans counts the adopted processes reaped so far.
func (r *Reaper) Orphans() uint64 { return r.orphans.Load() }

// Reap reaps everything that has exited, for a caller that knows of one, or expects
// it, and need not wait for Run to hear of it. What AfterExit was given runs here.
func (r *Reaper) Reap() {
	for _, afterExit := range r.collect() {
		afterExit()
	}
}

// collect reaps, and answers what the children's owners want called.
func (r *Reaper) collect() (after []func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		pid, err := linux.Exited()
		if err != nil || pid == 0 { // no children, or none that has exited
			return after
		}
		if f := r.reap(pid, r.whose(pid)); f != nil {
			after = append(after, f)
		}
	}
}

// reap reaps a child that has ended or is about to, or an orphan, when c is nil.
// It answers what the child's owner wants called. The caller holds mu.
func (r *Reaper) reap(pid int, c *Child) (afterExit func()) {
	var ws unix.WaitStatus
	var ru unix.Rusage
	_ = linux.Retry(func() error { // nobody else waits: it cannot fail
		_, err := unix.Wait4(pid, &ws, 0, &ru)
		return err
	})
	if c == nil {
		r.orphans.Add(1)
		return nil
	}
	return c.finish(Status{
		Wait:    ws,
		User:    time.Duration(ru.Utime.Nano()),
		System:  time.Duration(ru.Stime.Nano()),
		PeakRSS: ru.Maxrss << 10, // getrusage(2): KiB
	})
}

// whose is the child with that pid, which has ended, and nil for an orphan. It is
// no longer registered. The caller holds mu.
func (r *Reaper) whose(pid int) *Child {
	if c, ok := r.children[pid]; ok {
		delete(r.children, pid)
		return c
	}
	for b := range r.births {
		if b.pid() == pid {
			delete(r.births, b)
			return b.grown()
		}
	}
	return nil
}
