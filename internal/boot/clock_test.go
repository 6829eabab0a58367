package boot

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeHands is a guest whose clock drifts, beside a host whose clock is right:
// the time of the test's bubble.
type fakeHands struct {
	mu      sync.Mutex
	drift   float64       // seconds gained per second
	offset  time.Duration // of the guest, since set
	since   time.Time     // of the host, when offset was set
	took    time.Duration // of reading the host's clock
	err     error         // of that
	steps   int
	slews   int
	reads   int
	largest time.Duration // offset that a look found, but for the first
	jumps   []time.Duration
}

// jumped hears of a step that is still to be made.
func (h *fakeHands) jumped(by time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if (h.off() + by).Abs() < slewAt {
		h.jumps = append(h.jumps, by)
	}
}

func (h *fakeHands) off() time.Duration {
	return h.offset + time.Duration(h.drift*float64(time.Since(h.since)))
}

func (h *fakeHands) set(offset time.Duration) { h.offset, h.since = offset, time.Now() }

func (h *fakeHands) host() (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reads++; h.reads > samples {
		h.largest = max(h.largest, h.off().Abs())
	}
	time.Sleep(h.took / 2)
	defer time.Sleep(h.took / 2)
	return time.Now().UnixNano(), h.err
}

func (h *fakeHands) guest() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.off()).UnixNano()
}

func (h *fakeHands) step(by int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.steps++
	h.set(h.off() + time.Duration(by))
	return nil
}

// slew is done at once: what takes the kernel seconds matters to nobody here.
func (h *fakeHands) slew(by int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slews++
	h.set(h.off() + time.Duration(by))
	return nil
}

func (h *fakeHands) close() error { return nil }

// keep runs a Clock with these hands for so long.
func keep(t *testing.T, h *fakeHands, during func(*Clock)) {
	t.Helper()
	h.since = time.Now()
	c := &Clock{hands: h, jumped: h.jumped, log: slog.New(slog.DiscardHandler), bell: make(chan struct{}, 1)}
	c.adjust() // as OpenClock does
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	during(c)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestClockKept checks that a clock that drifts is stepped once and stays within
// 10 ms for an hour, looked at less and less often.
func TestClockKept(t *testing.T) {
	for _, drift := range []float64{100e-6, -100e-6, 0} {
		synctest.Test(t, func(t *testing.T) {
			h := &fakeHands{drift: drift, offset: -75 * time.Hour, took: 100 * time.Microsecond}
			keep(t, h, func(*Clock) { time.Sleep(time.Hour) })
			if h.steps != 1 || h.largest > stepAt {
				t.Errorf("drift %v: %d steps, off by %v at most", drift, h.steps, h.largest)
			}
			if looks := h.reads / samples; looks < 60 || looks > 80 {
				t.Errorf("drift %v: %d looks in an hour", drift, looks)
			}
			if drift == 0 && h.slews > 0 {
				t.Errorf("a clock that is right was slewed %d times", h.slews)
			}
		})
	}
}

// TestClockRestored checks that a prepared machine's clock is left alone, set
// when it comes back, and looked at often then.
func TestClockRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHands{took: 100 * time.Microsecond}
		keep(t, h, func(c *Clock) {
			time.Sleep(time.Hour)
			if err := c.Quiesce(t.Context()); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			h.mu.Lock()
			before := h.reads
			h.set(-time.Minute) // frozen meanwhile
			h.mu.Unlock()
			time.Sleep(time.Hour)
			h.mu.Lock()
			if h.reads != before {
				t.Errorf("%d readings while it was prepared", h.reads-before)
			}
			h.mu.Unlock()
			c.Resume()
			h.mu.Lock()
			if off := h.off(); off.Abs() > slewAt || h.steps != 1 {
				t.Errorf("after %d steps off by %v", h.steps, off)
			}
			before = h.reads
			h.mu.Unlock()
			time.Sleep(10 * time.Second)
			h.mu.Lock()
			defer h.mu.Unlock()
			if looks := (h.reads - before) / samples; looks < 3 {
				t.Errorf("%d looks in the 10 s after", looks)
			}
		})
	})
}

// TestClockJumpTold checks that a freeze nobody announced is told of when Run
// finds it, before the evidence is gone.
func TestClockJumpTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHands{took: 100 * time.Microsecond}
		keep(t, h, func(*Clock) {
			time.Sleep(time.Hour)
			h.mu.Lock()
			h.set(-time.Minute)
			h.mu.Unlock()
			time.Sleep(lookCalm)
		})
		if len(h.jumps) != 1 || (h.jumps[0]-time.Minute).Abs() > slewAt || h.steps != 1 {
			t.Errorf("told of jumps by %v, %d steps", h.jumps, h.steps)
		}
	})
}

// heldHands wait before they first step.
type heldHands struct {
	*fakeHands
	first     sync.Once
	stepping  chan struct{} // closed then
	mayHappen chan struct{}
}

func (h *heldHands) step(by int64) error {
	h.first.Do(func() { close(h.stepping); <-h.mayHappen })
	return h.fakeHands.step(by)
}

// TestClockSetOnce checks a look that a snapshot came into: it is still going to
// step the clock when Resume sets it right.
func TestClockSetOnce(t *testing.T) {
	h := &heldHands{&fakeHands{offset: -time.Hour, since: time.Now()}, sync.Once{}, make(chan struct{}), make(chan struct{})}
	c := &Clock{hands: h, jumped: h.jumped, log: slog.New(slog.DiscardHandler), bell: make(chan struct{}, 1)}
	var both sync.WaitGroup
	both.Go(func() { c.adjust() })
	<-h.stepping
	both.Go(c.Resume)
	select {
	case <-c.bell: // resumed: the two steps add up
	case <-time.After(50 * time.Millisecond):
	}
	close(h.mayHappen)
	both.Wait()
	if off := h.off(); off.Abs() > time.Second || h.steps != 1 {
		t.Errorf("after %d steps off by %v", h.steps, off)
	}
}

// TestClockUnsure checks that what cannot be read well moves nothing.
func TestClockUnsure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &fakeHands{offset: time.Hour, took: time.Second}
		keep(t, slow, func(*Clock) { time.Sleep(time.Minute) })
		broken := &fakeHands{offset: time.Hour, err: errors.New("no such clock any more")}
		keep(t, broken, func(*Clock) { time.Sleep(time.Minute) })
		if slow.steps+slow.slews+broken.steps+broken.slews > 0 {
			t.Errorf("moved by a slow clock %d times, by a broken one %d times", slow.steps+slow.slews, broken.steps+broken.slews)
		}
	})
}

// TestClockNone checks a machine whose host shows no clock, or something that is
// none: that is told of, and the machine's clock stays as it is.
func TestClockNone(t *testing.T) {
	var text strings.Builder
	log := slog.New(slog.NewTextHandler(&text, nil))
	if c := openClock(filepath.Join(t.TempDir(), "ptp0"), nil, log); c != nil || text.Len() > 0 {
		t.Errorf("%v, %s", c, &text)
	}
	c := openClock(os.DevNull, nil, log)
	if c == nil {
		t.Fatal("not opened")
	}
	if !strings.Contains(text.String(), "the clock may be wrong") || strings.Contains(text.String(), "clock set") {
		t.Errorf("the log says %s", &text)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
