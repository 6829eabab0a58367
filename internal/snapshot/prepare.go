package snapshot

import (
	"context"
	"slices"
	"time"
)

// limits bound the steps of Prepare and what follows it.
type limits struct {
	starts time.Duration // until none is under way
	parts  time.Duration // until they are at rest; what starts do not use is not theirs
	sync   time.Duration // to write the root filesystem out
	thaw   time.Duration // between two attempts to thaw what does not
}

// defaultLimits keep Prepare below the 3 s after which a host freezes the
// machine anyway. The wire contract gives the filesystem 2 s.
var defaultLimits = limits{starts: 300 * time.Millisecond, parts: 100 * time.Millisecond, sync: 2 * time.Second, thaw: time.Second}

// Freeze says what is to happen to the workload. The zero value lets it run.
type Freeze struct {
	// Wanted: freeze it.
	Wanted bool
	// Wait is how long to look whether it has stopped.
	Wait time.Duration
	// Thaw is when the watchdog lets it go on.
	Thaw time.Duration
}

// Outcome is what became of a Freeze.
type Outcome string

// The outcomes.
const (
	AllFrozen   Outcome = "frozen"      // every group was seen to have stopped
	NotInTime   Outcome = "not_frozen"  // some had not when Freeze.Wait was over
	FreezeError Outcome = "failed"      // some could not be told to
	NoFreezing  Outcome = "unavailable" // there is no way to
)

// Report is what Prepare observed.
type Report struct {
	Generation uint64
	// Synced: the root filesystem was written out in time.
	Synced bool
	// Outcome is "" when no freeze was wanted.
	Outcome Outcome
	Frozen  Frozen
	Waited  time.Duration // for the workload to stop
}

// Prepare brings the guest to rest. When it returns, the machine may be frozen.
// In a guest that is prepared already it does again what may be undone by now.
func (c *Coordinator) Prepare(f Freeze) Report {
	c.turn.Lock()
	defer c.turn.Unlock()
	began := time.Now()
	from := c.move(Preparing)
	c.mu.Lock()
	c.pending = true
	report := Report{Generation: c.generation}
	c.mu.Unlock()
	parts, conns := c.all()

	still := c.awaitStarts()
	if !still {
		c.cfg.Log.Warn("a process is still being started while the guest is prepared for a snapshot")
	}
	if from == Running {
		c.quiesce(parts)
	}
	if f.Wanted {
		c.freeze(f, still, &report)
	}
	report.Synced = c.sync()
	if conns != nil {
		conns.Rest()
	}
	c.cfg.Shrink()
	c.move(Prepared)
	c.cfg.Log.Info("prepared for a snapshot", "generation", report.Generation, "took", time.Since(began),
		"synced", report.Synced, "workload", report.Outcome)
	return report
}

func (c *Coordinator) quiesce(parts []Quiescer) {
	ctx, cancel := context.WithTimeout(context.Background(), c.limits.parts)
	defer cancel()
	for _, part := range slices.Backward(parts) {
		if err := part.Quiesce(ctx); err != nil {
			c.cfg.Log.Warn("a part does not come to rest for a snapshot", "error", err)
		}
	}
}

// awaitStarts waits until no start is under way, and tells whether that came
// true in time.
func (c *Coordinator) awaitStarts() bool {
	c.mu.Lock()
	if c.starting == 0 {
		c.mu.Unlock()
		return true
	}
	idle := make(chan struct{})
	c.idle = idle
	c.mu.Unlock()
	timer := time.NewTimer(c.limits.starts)
	defer timer.Stop()
	select {
	case <-idle:
		return true
	case <-timer.C:
		return false
	}
}

// sync writes the root filesystem out, and tells whether that was done in time.
// What the kernel does not finish goes on; the next sync waits for it first.
func (c *Coordinator) sync() bool {
	ctx, cancel := context.WithTimeout(context.Background(), c.limits.sync)
	defer cancel()
	c.mu.Lock()
	before := c.syncing
	c.mu.Unlock()
	if before != nil {
		select {
		case <-before:
		case <-ctx.Done():
			return false
		}
	}
	over := make(chan struct{})
	c.mu.Lock()
	c.syncing = over
	c.mu.Unlock()
	var err error
	// A system call that blocks cannot be ended: this goroutine may outlive
	// the call, and is the only one that may.
	go func() {
		err = c.cfg.Sync()
		c.mu.Lock()
		c.syncing = nil
		c.mu.Unlock()
		close(over)
	}()
	select {
	case <-over:
	case <-ctx.Done():
		c.cfg.Log.Warn("the root filesystem takes long to be written out for a snapshot")
		return false
	}
	if err != nil {
		c.cfg.Log.Warn("the root filesystem was not written out for a snapshot", "error", err)
	}
	return err == nil
}
