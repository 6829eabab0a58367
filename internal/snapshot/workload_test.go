package snapshot

import (
	"errors"
	"testing"
	"time"
)

// TestNoStartWhileFrozen checks trap 4 where it is forbidden: a request that
// brings the guest back without its workload does not open the gate.
func TestNoStartWhileFrozen(t *testing.T) {
	r := newRig(t)
	r.load.result = Frozen{Groups: 3, Frozen: 3}
	report := r.Prepare(Freeze{Wanted: true, Wait: limit, Thaw: time.Hour})
	if report.Outcome != AllFrozen || report.Frozen != r.load.result {
		t.Errorf("report %+v", report)
	}
	r.did(t, "quiesce second", "quiesce first", "freeze", "sync", "rest", "shrink")
	r.Return(false)
	r.is(t, Status{State: Running, Generation: 1, Pending: true, Frozen: true})
	if _, err := r.Enter(); !errors.Is(err, ErrPrepared) {
		t.Errorf("start while frozen: %v", err)
	}
	r.j.take()
	r.Return(true)
	r.did(t, "thaw")
	r.is(t, Status{State: Running, Generation: 1, Pending: true})
	if leave, err := r.Enter(); err != nil {
		t.Error(err)
	} else {
		leave()
	}
}

// TestNoFreezeWhileStarting checks trap 4 from its other side.
func TestNoFreezeWhileStarting(t *testing.T) {
	r := newRig(t)
	r.limits.starts = 10 * time.Millisecond
	leave, err := r.Enter()
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	if report := r.Prepare(Freeze{Wanted: true, Thaw: time.Hour}); report.Outcome != FreezeError {
		t.Errorf("report %+v", report)
	}
	r.did(t, prepareSteps...)
	r.is(t, Status{State: Prepared, Generation: 1, Pending: true})
}

func TestFreezeOutcomes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		result Frozen
		want   Outcome
	}{
		{"nothing runs", Frozen{}, AllFrozen},
		{"all", Frozen{Groups: 2, Frozen: 2}, AllFrozen},
		{"some in time", Frozen{Groups: 2, Frozen: 1}, NotInTime},
		{"some refused", Frozen{Groups: 2, Frozen: 1, Failed: 1}, FreezeError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.load.result = tc.result
			if report := r.Prepare(Freeze{Wanted: true, Wait: 10 * time.Millisecond, Thaw: time.Hour}); report.Outcome != tc.want {
				t.Errorf("outcome %v, want %v", report.Outcome, tc.want)
			}
			// Whatever came of it, the restore thaws.
			r.Restore(t.Context(), false)
			r.is(t, Status{State: Running, Generation: 2})
			if r.load.frozen {
				t.Error("still frozen")
			}
		})
	}
}

// TestFreezeWithoutWorkload checks a daemon without cgroups.
func TestFreezeWithoutWorkload(t *testing.T) {
	r := newRig(t)
	r.load.err = errors.New("no cgroups")
	if report := r.Prepare(Freeze{Wanted: true}); report.Outcome != NoFreezing {
		t.Errorf("outcome %v", report.Outcome)
	}
	r.Restore(t.Context(), false)
	r.is(t, Status{State: Running, Generation: 2})
}

// TestWatchdogThaws checks the host that freezes the workload and is not heard
// of again. The guest stays prepared: only a request tells that somebody is there.
func TestWatchdogThaws(t *testing.T) {
	r := newRig(t)
	r.Prepare(Freeze{Wanted: true, Thaw: time.Millisecond})
	wait(t, "the thaw", r.load.thawed)
	r.await(t, Prepared)
	for r.Status().Frozen { // Thaw returns a moment before
		time.Sleep(time.Millisecond)
	}
	if _, err := r.Enter(); !errors.Is(err, ErrPrepared) {
		t.Errorf("start while prepared: %v", err)
	}
}

// TestThawIsTriedAgain checks that what does not thaw at first does not stay
// frozen, and keeps nobody from starting commands meanwhile.
func TestThawIsTriedAgain(t *testing.T) {
	r := newRig(t)
	r.limits.thaw = time.Millisecond
	r.load.stuck = 3
	r.Prepare(Freeze{Wanted: true, Thaw: time.Hour})
	r.Restore(t.Context(), false)
	leave, err := r.Enter()
	if err != nil {
		t.Fatal(err)
	}
	leave()
	wait(t, "the thaw", r.load.thawed)
	r.load.mu.Lock()
	defer r.load.mu.Unlock()
	if r.load.frozen || r.load.stuck > 0 {
		t.Errorf("frozen: %v", r.load.frozen)
	}
}

// TestCloseThaws checks that the daemon's end leaves nothing frozen.
func TestCloseThaws(t *testing.T) {
	r := newRig(t)
	r.Close()
	r.Prepare(Freeze{Wanted: true, Thaw: time.Hour})
	r.Close()
	r.is(t, Status{State: Prepared, Generation: 1, Pending: true})
}

// TestWatchdogIsCalledOff checks that a watchdog of before does not thaw what
// was frozen after.
func TestWatchdogIsCalledOff(t *testing.T) {
	r := newRig(t)
	r.Prepare(Freeze{Wanted: true, Thaw: time.Hour})
	old := r.watchdog
	r.Restore(t.Context(), false)
	if old.Stop() {
		t.Error("the watchdog still ran after the thaw")
	}
	wait(t, "the thaw", r.load.thawed)
	r.Prepare(Freeze{Wanted: true, Thaw: time.Hour})
	old = r.watchdog
	r.Prepare(Freeze{Wanted: true, Thaw: time.Hour})
	if old.Stop() {
		t.Error("two watchdogs run")
	}
	r.Restore(t.Context(), false)
}
