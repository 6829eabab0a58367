package snapshot

import (
	"context"
	"errors"
	"testing"
	"time"
)

var (
	prepareSteps = []string{"quiesce second", "quiesce first", "sync", "rest", "shrink"}
	againSteps   = []string{"sync", "rest", "shrink"}
	returnSteps  = []string{"wake", "resume first", "resume second"}
)

// TestPrepareAndReturn checks the order of things: parts opened last rest
// first, and the heap is made small when all else is done.
func TestPrepareAndReturn(t *testing.T) {
	r := newRig(t)
	r.is(t, Status{State: Running, Generation: 1})
	if report := r.Prepare(Freeze{}); report != (Report{Generation: 1, Synced: true}) {
		t.Errorf("report %+v", report)
	}
	r.did(t, prepareSteps...)
	r.is(t, Status{State: Prepared, Generation: 1, Pending: true})
	r.Return(false)
	r.did(t, returnSteps...)
	if !r.Pending() || r.Generation() != 1 {
		t.Errorf("pending %v, generation %d after a return", r.Pending(), r.Generation())
	}
	r.is(t, Status{State: Running, Generation: 1, Pending: true})
	r.Return(true)
	r.did(t)
}

// TestRestore checks that a restore comes once for any number of prepares, and
// finishes what a request before it has begun.
func TestRestore(t *testing.T) {
	r := newRig(t)
	if r.Restore(t.Context(), false) {
		t.Error("restored without a prepare")
	}
	r.did(t)
	r.Prepare(Freeze{})
	r.Prepare(Freeze{})
	r.did(t, append(prepareSteps[:5:5], againSteps...)...)
	if !r.Restore(t.Context(), false) {
		t.Error("not restored after a prepare")
	}
	r.did(t, append([]string{"drop all=false"}, returnSteps...)...)
	r.is(t, Status{State: Running, Generation: 2})

	r.Prepare(Freeze{})
	r.Return(true)
	r.j.take()
	if !r.Restore(t.Context(), false) || r.Restore(t.Context(), false) {
		t.Error("a restore after a return does not come, or comes twice")
	}
	r.did(t, "drop all=false")
	r.is(t, Status{State: Running, Generation: 3})
}

// TestRestoreUnannounced checks the freeze that no prepare announced: which
// connections are older, nobody knows.
func TestRestoreUnannounced(t *testing.T) {
	r := newRig(t)
	if !r.Restore(t.Context(), true) {
		t.Error("not restored")
	}
	r.did(t, "drop all=true")
	r.is(t, Status{State: Running, Generation: 2})
	r.Prepare(Freeze{})
	r.j.take()
	r.Restore(t.Context(), true)
	r.did(t, append([]string{"drop all=false"}, returnSteps...)...)
	r.is(t, Status{State: Running, Generation: 3})
}

// TestRestoreByTheClock checks the freeze that only the clock tells of, be it
// that the daemon itself has set it right before the host's word came.
func TestRestoreByTheClock(t *testing.T) {
	r := newRig(t)
	r.Jumped(900 * time.Millisecond)
	if r.Restore(t.Context(), false) {
		t.Error("restored, as the clock went a little wrong")
	}
	for generation, by := range []time.Duration{time.Hour, -2 * time.Second} {
		r.Jumped(by)
		r.Jumped(20 * time.Millisecond) // the rest of it
		r.is(t, Status{State: Running, Generation: uint64(generation) + 1})
		if !r.Restore(t.Context(), false) || r.Restore(t.Context(), false) {
			t.Errorf("a jump by %v is not evidence of one restore", by)
		}
		r.did(t, "drop all=true")
	}
}

// TestReseed checks when random numbers are made new: before a restored guest
// does anything, and once when a prepared one comes back in another way.
func TestReseed(t *testing.T) {
	r := newRig(t)
	r.cfg.Reseed = func() { r.j.add("reseed") }
	r.Return(true)
	r.Restore(t.Context(), false)
	r.did(t)
	r.Restore(t.Context(), true)
	r.did(t, "reseed", "drop all=true")
	r.Prepare(Freeze{})
	r.j.take()
	r.Return(true)
	r.Return(true)
	r.did(t, append([]string{"reseed"}, returnSteps...)...)
	r.Restore(t.Context(), false)
	r.did(t, "reseed", "drop all=false")
}

// TestPartFails checks that a part which does not come to rest holds nothing up
// and is resumed like the others.
func TestPartFails(t *testing.T) {
	r := newRig(t)
	r.second.err = errors.New("busy")
	r.Prepare(Freeze{})
	r.did(t, prepareSteps...)
	r.Return(true)
	r.did(t, returnSteps...)
}

// TestSyncFails checks that the state does not depend on the filesystem.
func TestSyncFails(t *testing.T) {
	r := newRig(t)
	r.sync = func() error { return errors.New("disk on fire") }
	if report := r.Prepare(Freeze{}); report.Synced {
		t.Error("synced")
	}
	r.is(t, Status{State: Prepared, Generation: 1, Pending: true})
}

// TestSyncTakesLong checks that a prepare answers all the same, that the next
// one does not pile up a second sync, and that both see to the rest.
func TestSyncTakesLong(t *testing.T) {
	r := newRig(t)
	r.limits.sync = 10 * time.Millisecond
	release, syncs := make(chan struct{}), make(chan struct{}, 10)
	r.sync = func() error { syncs <- struct{}{}; <-release; return nil }
	for range 2 {
		if report := r.Prepare(Freeze{}); report.Synced {
			t.Error("synced")
		}
		r.is(t, Status{State: Prepared, Generation: 1, Pending: true})
	}
	wait(t, "the sync", syncs)
	r.j.take()
	not(t, "another sync", syncs)
	close(release)
	r.limits.sync = limit
	if report := r.Prepare(Freeze{}); !report.Synced {
		t.Error("not synced")
	}
	r.did(t, againSteps...)
}

// TestGate checks that a start waits while a prepare is under way, is refused
// after it, and passes once a request has brought the guest back.
func TestGate(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	r.sync = func() error { <-release; return nil }
	prepared := begin(func() { r.Prepare(Freeze{}) })
	r.await(t, Preparing)
	entered := make(chan error, 1)
	go func() {
		_, err := r.Enter()
		entered <- err
	}()
	not(t, "the start", entered)
	close(release)
	wait(t, "the prepare", prepared)
	if err := <-entered; !errors.Is(err, ErrPrepared) {
		t.Errorf("start while prepared: %v", err)
	}
	r.Return(true)
	leave, err := r.Enter()
	if err != nil {
		t.Fatal(err)
	}
	leave()
}

// TestAwait checks the wait of a start that nobody made a request for.
func TestAwait(t *testing.T) {
	r := newRig(t)
	if err := r.Await(t.Context()); err != nil {
		t.Error(err)
	}
	r.Prepare(Freeze{Wanted: true, Thaw: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error, 2)
	go func() { waits <- r.Await(ctx) }()
	not(t, "the end of the wait", waits)
	cancel()
	if err := <-waits; !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	go func() { waits <- r.Await(t.Context()) }()
	r.Return(false) // the workload is frozen still
	not(t, "the end of the wait", waits)
	r.Return(true)
	if err := <-waits; err != nil {
		t.Error(err)
	}
}

// TestPrepareWaitsForStarts checks that nothing is quiesced while a start is
// under way, and that one which never ends does not hold the freeze up.
func TestPrepareWaitsForStarts(t *testing.T) {
	r := newRig(t)
	r.limits.starts = limit
	leave, err := r.Enter()
	if err != nil {
		t.Fatal(err)
	}
	prepared := begin(func() { r.Prepare(Freeze{}) })
	r.await(t, Preparing)
	not(t, "the prepare", prepared)
	r.did(t)
	leave()
	wait(t, "the prepare", prepared)
	r.did(t, prepareSteps...)

	r.Return(true)
	r.limits.starts = 10 * time.Millisecond
	if leave, err = r.Enter(); err != nil {
		t.Fatal(err)
	}
	defer leave()
	wait(t, "the prepare", begin(func() { r.Prepare(Freeze{}) }))
}

// TestTwoPreparesAtOnce checks that parts rest once and that both end prepared.
func TestTwoPreparesAtOnce(t *testing.T) {
	r := newRig(t)
	one, two := begin(func() { r.Prepare(Freeze{}) }), begin(func() { r.Prepare(Freeze{}) })
	wait(t, "one", one)
	wait(t, "the other", two)
	r.did(t, append(prepareSteps[:5:5], againSteps...)...)
	r.is(t, Status{State: Prepared, Generation: 1, Pending: true})
}

// TestPrepareDuringRestore checks that a prepare begins when all parts are back.
func TestPrepareDuringRestore(t *testing.T) {
	r := newRig(t)
	r.Prepare(Freeze{})
	r.j.take()
	r.second.held, r.second.resuming = make(chan struct{}), make(chan struct{})
	restored := begin(func() { r.Restore(t.Context(), false) })
	wait(t, "the resume", r.second.resuming)
	r.is(t, Status{State: Restoring, Generation: 2})
	prepared := begin(func() { r.Prepare(Freeze{}) })
	not(t, "the prepare", prepared)
	close(r.second.held)
	wait(t, "the restore", restored)
	wait(t, "the prepare", prepared)
	r.did(t, append(append([]string{"drop all=false"}, returnSteps...), prepareSteps...)...)
	r.is(t, Status{State: Prepared, Generation: 2, Pending: true})
}

// TestRestoreDuringSync checks a host that did not wait for the prepare: its
// /init comes while the filesystem is still being written out.
func TestRestoreDuringSync(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	r.sync = func() error { <-release; return nil }
	prepared := begin(func() { r.Prepare(Freeze{}) })
	r.await(t, Preparing)
	if r.Away() {
		t.Error("requests bring a guest back that is not prepared yet")
	}
	restored := begin(func() { r.Restore(t.Context(), false) })
	not(t, "the restore", restored)
	close(release)
	wait(t, "the prepare", prepared)
	wait(t, "the restore", restored)
	r.did(t, append(append(prepareSteps[:5:5], "drop all=false"), returnSteps...)...)
	r.is(t, Status{State: Running, Generation: 2})
}
