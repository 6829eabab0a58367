package snapshot

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestModel compares random sequences of calls with what the states say.
func TestModel(t *testing.T) {
	r := newRig(t)
	rng := rand.New(rand.NewPCG(1, 2))
	want := Status{State: Running, Generation: 1}
	for step := range 5000 {
		switch op := rng.IntN(6); op {
		case 0, 1:
			freeze := op == 1
			r.Prepare(Freeze{Wanted: freeze, Thaw: time.Hour})
			want.State, want.Pending = Prepared, true
			want.Frozen = want.Frozen || freeze
		case 2, 3:
			workload := op == 3
			r.Return(workload)
			want.State = Running
			want.Frozen = want.Frozen && !workload
		case 4:
			jumped := rng.IntN(4) == 0
			restored := want.Pending || jumped
			if got := r.Restore(t.Context(), jumped); got != restored {
				t.Fatalf("step %d: restored %v, want %v", step, got, restored)
			}
			if restored {
				want.Generation++
			}
			want.State, want.Pending, want.Frozen = Running, false, false
		case 5:
			leave, err := r.Enter()
			if open := want.State == Running && !want.Frozen; (err == nil) != open {
				t.Fatalf("step %d: start in %+v: %v", step, want, err)
			}
			if err == nil {
				leave()
			}
		}
		r.is(t, want)
		r.first.mu.Lock()
		if r.first.resting != (want.State == Prepared) {
			t.Fatalf("step %d: part rests %v in %+v", step, r.first.resting, want)
		}
		r.first.mu.Unlock()
		if r.load.frozen != want.Frozen {
			t.Fatalf("step %d: workload frozen %v in %+v", step, r.load.frozen, want)
		}
	}
}

// TestInterleavings makes all calls at once, many times, and checks what must
// hold in between: nothing starts while the filesystem is written out or the
// workload is frozen, and every start gets through when somebody brings the
// guest back.
func TestInterleavings(t *testing.T) {
	r := newRig(t)
	var starting atomic.Int64
	r.sync = func() error {
		if n := starting.Load(); n != 0 {
			t.Errorf("%d starts while the filesystem is written out", n)
		}
		return nil
	}
	r.limits.starts = limit
	const rounds = 300
	var wg sync.WaitGroup
	again := func(f func(i int)) {
		wg.Go(func() {
			for i := range rounds {
				f(i)
			}
		})
	}
	again(func(i int) { r.Prepare(Freeze{Wanted: i%2 == 0, Thaw: time.Hour}) })
	again(func(i int) { r.Prepare(Freeze{Wanted: i%3 == 0, Thaw: time.Microsecond}) })
	again(func(i int) { r.Restore(t.Context(), i%7 == 0) })
	again(func(i int) { r.Return(i%2 == 0) })
	for range 4 {
		wg.Go(func() {
			for range rounds {
				leave, err := r.Enter()
				for ; errors.Is(err, ErrPrepared); leave, err = r.Enter() {
					r.Return(true)
				}
				if err != nil {
					t.Error(err)
					return
				}
				starting.Add(1)
				r.load.mu.Lock()
				if r.load.frozen {
					t.Error("a start while the workload is frozen")
				}
				r.load.mu.Unlock()
				starting.Add(-1)
				leave()
			}
		})
	}
	wait(t, "the end", begin(wg.Wait))
	r.Restore(t.Context(), true)
	if s := r.Status(); s.State != Running || s.Pending || s.Frozen || r.Away() {
		t.Errorf("status %+v at the end", s)
	}
}
