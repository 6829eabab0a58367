package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

// hostClock is the device by which a hypervisor shows its own clock: that of
// ptp_kvm, the only PTP device of such a machine.
const hostClock = "/dev/ptp0"

const (
	// stepAt is how far off the clock may be before it is set at once. Below,
	// it is made to run a little faster or slower, which nobody notices.
	stepAt = 10 * time.Millisecond
	// slewAt is from where on it is touched at all.
	slewAt = time.Millisecond
	// lookEager and lookCalm bound the pause between two looks: it begins as
	// the first and doubles up to the second while the clock is right. A crystal
	// is off by some 100 ppm at most, 6 ms in a minute.
	lookEager = time.Second
	lookCalm  = time.Minute
	// samples of one look, of which the quickest counts; one that took longer
	// than tooSlow says nothing.
	samples = 5
	tooSlow = 5 * time.Millisecond
)

var errTooSlow = errors.New("reading the host's clock takes too long")

// Clock keeps the machine's wall clock at the host's. OpenClock makes it, Run
// does its work, Close ends it. Quiesce and Resume are for snapshots.
type Clock struct {
	hands   hands
	jumped  func(by time.Duration) // hears of each step before it is made
	log     *slog.Logger
	bell    chan struct{}
	resting atomic.Bool

	mu sync.Mutex // serialises adjust: a step is relative, and two would add up
}

// hands are what a Clock reads and moves, in nanoseconds since 1970.
type hands interface {
	host() (int64, error)
	guest() int64
	step(by int64) error
	slew(by int64) error
	close() error
}

// OpenClock opens the host's clock and steps the machine's to it. It returns nil
// where the host shows none. jumped hears of each later step, and how far ahead,
// before it is made: after it, nothing shows that the machine was frozen.
func OpenClock(jumped func(by time.Duration), log *slog.Logger) *Clock {
	return openClock(hostClock, jumped, log)
}

func openClock(path string, jumped func(time.Duration), log *slog.Logger) *Clock {
	device, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		log.Warn("the clock is not kept at the host's", "error", err)
		return nil
	}
	c := &Clock{hands: realHands{device}, jumped: func(time.Duration) {}, log: log, bell: make(chan struct{}, 1)}
	c.adjust() // whatever it was before the boot
	c.jumped = jumped
	return c
}

// Run keeps the clock right until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	pause := lookEager
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-c.bell:
			pause = lookEager
		case <-timer.C:
			pause = min(2*pause, lookCalm)
			if c.adjust() {
				pause = lookEager
			}
		case <-ctx.Done():
			return nil
		}
		if c.resting.Load() {
			timer.Stop()
		} else {
			timer.Reset(pause)
		}
	}
}

// Close releases the device. A look that comes after finds no clock.
func (c *Clock) Close() error { return c.hands.close() }

// Quiesce stops looking at the host's clock until Resume.
func (c *Clock) Quiesce(context.Context) error {
	c.resting.Store(true)
	c.ring()
	return nil
}

// Resume sets the clock right, before anything else goes on, and looks often
// from then on.
func (c *Clock) Resume() {
	c.adjust()
	c.resting.Store(false)
	c.ring()
}

func (c *Clock) ring() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// adjust sets the clock right, and tells whether it had to be stepped.
func (c *Clock) adjust() (stepped bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	by, err := c.behind()
	switch {
	case err != nil:
	case by.Abs() >= stepAt:
		stepped = true
		c.jumped(by)
		if err = c.hands.step(int64(by)); err == nil {
			c.log.Info("clock set by the host's", "ahead_by", by)
		}
	case by.Abs() >= slewAt:
		err = c.hands.slew(int64(by))
	}
	if err != nil {
		c.log.Warn("the clock may be wrong", "error", err)
	}
	return stepped
}

// behind tells how far the machine's clock is behind the host's. The host's is
// read between two readings of the machine's: the closer those are, the better.
func (c *Clock) behind() (by time.Duration, err error) {
	best := tooSlow
	err = errTooSlow
	for range samples {
		before := c.hands.guest()
		host, hostErr := c.hands.host()
		after := c.hands.guest()
		if hostErr != nil {
			return 0, hostErr
		}
		// A clock that somebody sets in between goes back, or far ahead.
		if took := time.Duration(after - before); took >= 0 && took < best {
			best, err = took, nil
			by = time.Duration(host - before - int64(took)/2)
		}
	}
	return by, err
}

// realHands are the kernel's.
type realHands struct{ device *os.File }

func (h realHands) host() (int64, error) { return linux.ClockOf(h.device) }
func (realHands) guest() int64           { return time.Now().UnixNano() }
func (realHands) step(by int64) error    { return linux.StepClock(by) }
func (realHands) slew(by int64) error    { return linux.SlewClock(by) }

func (h realHands) close() error {
	if err := h.device.Close(); err != nil {
		return fmt.Errorf("close the host's clock: %w", err)
	}
	return nil
}
