package reap

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// Status is how a child ended and what it used.
type Status struct {
	Wait unix.WaitStatus
	// User and System are the processor time of the child and of those of its
	// descendants that it waited for.
	User, System time.Duration
	// PeakRSS is the largest resident set, in bytes, of any one of them. It
	// counts the moment between fork and exec, so it is never below the
	// daemon's own.
	PeakRSS int64
}

// Child is a started process. Reaper.Start makes it; the reaper finishes it.
type Child struct {
	pid    int
	done   chan struct{}
	status Status // valid once done is closed

	mu        sync.Mutex
	pidfd     int    // guarded by mu; -1 once finished
	afterExit func() // guarded by mu
}

// Pid is the child's process id. After Done it may belong to another process.
func (c *Child) Pid() int { return c.pid }

// Pidfd is a descriptor that can be polled for the child's end. The reaper
// closes it then, and -1 is what it has become.
func (c *Child) Pidfd() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pidfd
}

// Done is closed when the child has been reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status waits for the child and tells how it ended.
func (c *Child) Status() Status {
	<-c.done
	return c.status
}

// Signal sends sig to the child, and to no other process whatever became of
// its pid. It returns ErrFinished when the child has been reaped.
func (c *Child) Signal(sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return ErrFinished
	}
	return linux.SignalPidfd(c.pidfd, sig)
}

// AfterExit has f called once when the child has been reaped: on the goroutine
// that reaps, Run's or that of a caller of Reap, which f must not hold up, or
// right here when it was already.
func (c *Child) AfterExit(f func()) {
	c.mu.Lock()
	if c.pidfd >= 0 {
		c.afterExit = f
		f = func() {}
	}
	c.mu.Unlock()
	f()
}

// finish records the end. The caller calls what it returns, holding no lock.
func (c *Child) finish(s Status) (afterExit func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = unix.Close(c.pidfd)
	c.pidfd = -1
	c.status = s
	close(c.done)
	return c.afterExit
}
