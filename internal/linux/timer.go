package linux

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Timer is a timer that can be polled beside descriptors (timerfd_create(2)).
// Unlike the runtime's it wakes nothing but who waits for it.
type Timer struct{ fd int }

// OpenTimer makes a timer that is not set. The caller closes it.
func OpenTimer() (*Timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	return &Timer{fd}, nil
}

// FD is the descriptor: it has input once the timer has run down, until the
// timer is set again.
func (t *Timer) FD() int { return t.fd }

// Set makes the timer run down once, after d or at once; a negative d stops it.
func (t *Timer) Set(d time.Duration) error {
	var spec unix.ItimerSpec
	if d >= 0 {
		spec.Value = unix.NsecToTimespec(max(1, d.Nanoseconds())) // 0 would stop it
	}
	if err := unix.TimerfdSettime(t.fd, 0, &spec, nil); err != nil {
		return fmt.Errorf("timerfd_settime: %w", err)
	}
	return nil
}

// Close closes the timer.
func (t *Timer) Close() error {
	if err := unix.Close(t.fd); err != nil {
		return fmt.Errorf("close timer: %w", err)
	}
	return nil
}
