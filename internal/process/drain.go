package process

import "time"

const (
	// quietSpell is how long nothing may come, after the leader's exit, for
	// output held open by a descendant to count as drained.
	quietSpell = 40 * time.Millisecond
	// drainPause is how long after the exit the end of file may come before
	// draining begins: it is on its way when nobody holds the output.
	drainPause = 5 * time.Millisecond
	// drainLimit bounds draining when it is never quiet. Together with the
	// work around it, it keeps the end within 200 ms of the exit.
	drainLimit = 120 * time.Millisecond
)

// drain waits until the output that was written before the leader's exit is in
// the log: until end of file, or, when a descendant holds the output open,
// until it has been quiet or the limit is over. Time in which a reader keeps
// that output from the log does not count. It returns whether the output is
// still open.
func drain(pumps []*pump, bell <-chan struct{}) (open bool) {
	if allEnded(pumps) {
		return false
	}
	marks := make([]int64, len(pumps))
	for i, p := range pumps {
		marks[i], _ = p.mark() // 0 when it has just ended
	}
	timer := time.NewTimer(quietSpell)
	defer timer.Stop()
	for spent := time.Duration(0); ; {
		covered, heldBack := look(pumps, marks)
		switch {
		case allEnded(pumps):
			return false
		case covered && spent >= drainLimit:
			return true
		}
		timer.Reset(quietSpell)
		over := timer.C
		if heldBack && !covered {
			over = nil
		}
		began := time.Now()
		select {
		case <-bell:
		case <-over:
			if covered && !heldBack {
				return true
			}
		}
		if over != nil {
			spent += time.Since(began)
		}
	}
}

func look(pumps []*pump, marks []int64) (covered, heldBack bool) {
	covered = true
	for i, p := range pumps {
		read, waiting := p.progress()
		covered = covered && (read >= marks[i] || p.ended())
		heldBack = heldBack || waiting
	}
	return covered, heldBack
}

func allEnded(pumps []*pump) bool {
	for _, p := range pumps {
		if !p.ended() {
			return false
		}
	}
	return true
}
