package snapshot

import (
	"context"
	"time"
)

// jumpSize is the step of the clock that only a restore explains, from the
// wire contract.
const jumpSize = time.Second

// Jumped says that the clock is set ahead by that much, to the host's time. A
// long jump is evidence of a restore, kept for the next call of Restore: until
// the host's word, the machine may as well have been paused, and its connections
// be good.
func (c *Coordinator) Jumped(by time.Duration) {
	if by.Abs() > jumpSize {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.jumped = true
	}
}

// Return brings a prepared guest back to work, as a request does that needs it.
// Live connections and their streams go on. Only with workload does it thaw
// what is frozen: to look at the guest, nothing has to run.
func (c *Coordinator) Return(workload bool) {
	away := c.away.Load()
	if away&awayPrepared == 0 && (!workload || away&awayFrozen == 0) {
		return
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	if c.Status().State == Prepared {
		c.reseed() // nobody may ever call Restore
	}
	c.resume()
	if workload {
		c.thaw()
	}
}

// Restore is the host's word that the machine was restored, or, when another is
// not set, that it may have been: then it was if a Prepare came before, or the
// clock has jumped. another says that this is another sandbox now. Restore tells
// whether a new generation has begun. keep is the context of the request that
// brings the word; its connection stays.
func (c *Coordinator) Restore(keep context.Context, another bool) bool {
	c.turn.Lock()
	defer c.turn.Unlock()
	c.mu.Lock()
	pending := c.pending
	restored := pending || another || c.jumped
	c.pending, c.jumped = false, false
	if restored {
		c.generation++
	}
	generation := c.generation
	c.mu.Unlock()
	if restored {
		c.reseed()
		c.cfg.Log.Info("restored from a snapshot", "generation", generation, "announced", pending)
		if _, conns := c.all(); conns != nil {
			conns.Drop(keep, !pending, ErrRestored)
		}
	}
	c.resume()
	c.thaw()
	return restored
}

// resume undoes Prepare, but for the workload. The caller has the turn.
func (c *Coordinator) resume() {
	if c.Status().State != Prepared {
		return
	}
	c.move(Restoring)
	parts, conns := c.all()
	if conns != nil {
		conns.Wake()
	}
	for _, part := range parts {
		part.Resume()
	}
	c.move(Running)
}

// reseed comes before anything that may want a random number.
func (c *Coordinator) reseed() {
	if c.cfg.Reseed != nil {
		c.cfg.Reseed()
	}
}
