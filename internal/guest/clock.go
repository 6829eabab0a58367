package guest

import (
	"time"

	"github.com/wrenn/envd/internal/linux"
)

// How far the clock may be off before it is set, from the wire contract. Behind
// is what a restore leaves; a host's message takes a while, so that a guest
// that seems a little ahead is right.
const (
	mayBehind = 50 * time.Millisecond
	mayAhead  = 5 * time.Second
)

// Clock is a wall clock.
type Clock interface {
	Now() time.Time
	// Set sets the clock.
	Set(t time.Time) error
}

// SystemClock is the machine's.
type SystemClock struct{}

// Now implements Clock.
func (SystemClock) Now() time.Time { return time.Now() }

// Set implements Clock.
func (SystemClock) Set(t time.Time) error { return linux.SetRealtime(t) }

// adjust sets c to host, the host's time at this moment, if it is too far off.
// by is how far it was set ahead.
func adjust(c Clock, host time.Time) (by time.Duration, err error) {
	by = host.Round(0).Sub(c.Now().Round(0)) // by the wall clock, not the monotonic
	if -mayAhead <= by && by <= mayBehind {
		return 0, nil
	}
	if err := c.Set(host); err != nil {
		return 0, err
	}
	return by, nil
}
