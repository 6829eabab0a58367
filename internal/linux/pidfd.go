package linux

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// OpenPidfd opens a descriptor for the process pid. It names that process for
// good, while the number may be given to another one.
func OpenPidfd(pid int) (int, error) {
	// Pidfds are always close-on-exec (pidfd_open(2)).
	fd, err := RetryInt(func() (int, error) { return unix.PidfdOpen(pid, 0) })
	if err != nil {
		return -1, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return fd, nil
}

// SignalPidfd sends sig to the process behind pidfd.
func SignalPidfd(pidfd int, sig unix.Signal) error {
	if err := unix.PidfdSendSignal(pidfd, sig, nil, 0); err != nil {
		return fmt.Errorf("pidfd_send_signal %v: %w", sig, err)
	}
	return nil
}
