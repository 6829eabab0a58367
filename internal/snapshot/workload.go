package snapshot

import (
	"context"
	"time"
)

// freeze stops the workload and arms the watchdog. A start that is still under
// way forbids it: its child would be frozen before it has called exec, and later
// be killed for that. Without clone3(2) it would stop all of the daemon at the
// next collection of the garbage; see package vfork. The caller has the turn.
func (c *Coordinator) freeze(f Freeze, noStarts bool, report *Report) {
	if !noStarts {
		report.Outcome = FreezeError
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), f.Wait)
	defer cancel()
	began := time.Now()
	frozen, err := c.cfg.Workload.Freeze(ctx)
	if err != nil {
		c.cfg.Log.Warn("the workload cannot be frozen for a snapshot", "error", err)
		report.Outcome = NoFreezing
		return
	}
	report.Frozen, report.Waited = frozen, time.Since(began)
	switch {
	case frozen.Failed > 0:
		report.Outcome = FreezeError
	case frozen.Frozen < frozen.Groups:
		report.Outcome = NotInTime
	default:
		report.Outcome = AllFrozen
	}
	// The gate is shut while the guest is prepared, and from here on longer.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen, c.stuck = true, false
	c.noteLocked()
	if c.watchdog != nil {
		c.watchdog.Stop()
	}
	c.watchdog = time.AfterFunc(f.Thaw, c.overdue)
}

// overdue is the watchdog: the host froze the workload and does not come back.
func (c *Coordinator) overdue() {
	c.turn.Lock()
	defer c.turn.Unlock()
	if c.Status().Frozen {
		c.cfg.Log.Warn("the workload was frozen for a snapshot and nobody thawed it")
	}
	c.thaw()
}

// Close thaws the workload, so that it can obey the daemon's end.
func (c *Coordinator) Close() {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.thaw()
	if c.stuck {
		c.watchdog.Stop()
	}
}

// thaw lets a frozen workload go on, and what did not the last time. Commands
// can start then in any case. The caller has the turn.
func (c *Coordinator) thaw() {
	if !c.Status().Frozen && !c.stuck {
		return
	}
	err := c.cfg.Workload.Thaw()
	c.stuck = err != nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = false
	if c.stuck {
		c.cfg.Log.Error("some of the workload does not thaw", "error", err)
		c.watchdog.Reset(c.limits.thaw)
	} else {
		c.watchdog.Stop()
	}
	c.noteLocked()
	c.moved.Broadcast()
}
