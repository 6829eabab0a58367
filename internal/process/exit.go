package process

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how a process ended.
type Exit struct {
	Wait unix.WaitStatus
	// OutputOpen: a descendant still holds the output, more may be written.
	OutputOpen bool
	// OOMKilled: the kernel killed something in the group for lack of memory.
	OOMKilled bool
	// TimedOut: the tree was killed at the end of Spec.Timeout.
	TimedOut bool
	Usage    Usage
}

// Usage is what a process and its descendants had used when it ended.
type Usage struct {
	User, System time.Duration
	PeakMemory   int64 // bytes
}

// Code is the exit code, or -1 when a signal ended the process.
func (e *Exit) Code() int { return e.Wait.ExitStatus() }

// Exited tells whether the process ended by itself.
func (e *Exit) Exited() bool { return e.Wait.Exited() }

// String is worded as os.ProcessState is: clients compare it.
func (e *Exit) String() string {
	if e.Wait.Exited() {
		return fmt.Sprintf("exit status %d", e.Wait.ExitStatus())
	}
	s := "signal: " + e.Wait.Signal().String()
	if e.Wait.CoreDump() {
		s += " (core dumped)"
	}
	return s
}
