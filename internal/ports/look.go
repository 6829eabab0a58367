package ports

import (
	"slices"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// lookOften is the pause between two looks while a port may open any time:
	// half of it is what passes on average before one is found.
	lookOften = 30 * time.Millisecond
	// lookRarely is the pause while nothing seems to happen.
	lookRarely = time.Second
	// changeSpell is how long something may still follow a change.
	changeSpell = 10 * time.Second
	// lookShare and idleShare bound the part of one processor that looking may
	// take: with thousands of listeners a look takes milliseconds. The pause
	// for that reason is lookRarely at most, and idlest.
	lookShare = 50
	idleShare = 2000
	idlest    = 5 * time.Second
	// retryPause is between two tries at what could not be forwarded.
	retryPause = time.Second
)

// pace is the pause after a look that took cost.
func pace(busy bool, cost time.Duration) time.Duration {
	if busy {
		return max(lookOften, min(lookRarely, lookShare*cost))
	}
	return max(lookRarely, min(idlest, idleShare*cost))
}

// Touch says that something has happened that may open a port, such as the
// start of a program. It costs next to nothing.
func (f *Forwarder) Touch() {
	f.touch()
	if !f.rare.CompareAndSwap(true, false) {
		return // looking often, or not at all
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kernel != nil && !f.restingLocked() {
		f.sleepLocked(lookOften)
	}
}

func (f *Forwarder) touch() { f.touched.Store(int64(time.Since(f.began))) }

func (f *Forwarder) busyLocked() bool {
	since := time.Since(f.began) - time.Duration(f.touched.Load())
	return f.watches > 0 || since < changeSpell || f.cfg.Active()
}

// restingLocked tells whether there is no reason to look.
func (f *Forwarder) restingLocked() bool { return f.quiesced || !f.present && f.watches == 0 }

// lookLocked asks the kernel for listeners, forwards accordingly and sets the
// timer for the next look.
func (f *Forwarder) lookLocked() {
	if f.restingLocked() {
		f.closeForwardsLocked()
		f.sleepLocked(-1)
		return
	}
	f.resumeAcceptingLocked()
	began := time.Now()
	err := f.refreshLocked()
	if err != nil && !f.failing {
		f.cfg.Log.Error("ports are not forwarded", "error", err)
	}
	f.failing = err != nil
	f.lookedAt = time.Now()
	f.cost = f.lookedAt.Sub(began)
	// First the flag, then the question: a Touch between the two is seen by
	// one of them.
	f.rare.Store(true)
	busy := f.busyLocked()
	if busy {
		f.rare.Store(false)
	}
	f.sleepLocked(pace(busy, f.cost))
}

// lookSoonLocked looks now; or a moment later where looks take so long that a
// thousand listeners closed one by one would keep us busy with nothing else.
func (f *Forwarder) lookSoonLocked() {
	const longLook, share = time.Millisecond, 4
	if wait := share*f.cost - time.Since(f.lookedAt); f.cost > longLook && wait > 0 {
		f.sleepLocked(wait)
		return
	}
	f.lookLocked()
}

// sleepLocked sets the timer; a negative d stops it.
func (f *Forwarder) sleepLocked(d time.Duration) {
	if d < 0 {
		f.rare.Store(false)
	}
	if err := f.timer.Set(d); err != nil {
		f.cfg.Log.Error("ports may not be watched any more", "error", err)
	}
}

// refreshLocked brings listeners and forwards up to date.
func (f *Forwarder) refreshLocked() error {
	due := !f.retryAt.IsZero() && time.Now().After(f.retryAt)
	list, changed, err := f.askLocked(due)
	if err != nil || !changed && !due {
		return err
	}
	want := f.wantedLocked(list)
	if len(want) > 0 && !f.kernel.joined {
		// From here on the end of a listener is reported: asked again, nothing
		// is missed between the answer and the forward.
		if err := f.kernel.watch(true); err != nil {
			return err
		}
		if list, _, err = f.askLocked(true); err != nil {
			return err
		}
		want = f.wantedLocked(list)
	}
	f.listeners = f.othersLocked(list) // while it is known which are ours
	if changed {
		f.touch() // to try again is no news
	}
	f.forwardLocked(want)
	f.notifyLocked()
	return nil
}

// askLocked answers the listeners there are if they changed or force says so, and
// whether they did.
func (f *Forwarder) askLocked(force bool) (_ []Listener, changed bool, err error) {
	answer, whole, err := f.kernel.listeners(f.spare)
	if err != nil {
		return nil, false, err
	}
	same := slices.Equal(answer, f.answer)
	f.answer, f.spare = answer, f.answer
	if same && !force {
		return nil, false, nil
	}
	list := answer
	if !whole {
		// An answer in parts may pass over a listener when others go: what a
		// second one has is there.
		if list, _, err = f.kernel.listeners(nil); err != nil {
			return nil, false, err
		}
		list = append(list, answer...)
	}
	return sorted(list), !same, nil
}

func (f *Forwarder) wantedLocked(list []Listener) map[uint16]targets {
	if !f.present {
		return nil
	}
	return wanted(list, f.cfg.Address, f.cfg.Own, f.oursLocked)
}

// forgetLocked makes the next look act even if nothing has changed.
func (f *Forwarder) forgetLocked() { f.answer = f.answer[:0] }

// checkAddressLocked finds out whether the address is there, and says so once.
func (f *Forwarder) checkAddressLocked() {
	if !f.cfg.Address.IsValid() {
		return
	}
	err := linux.CanBindTCP(f.cfg.Address)
	was := f.present
	f.present = err == nil
	switch {
	case f.present && !was:
		f.forgetLocked()
		f.cfg.Log.Info("loopback ports are forwarded", "address", f.cfg.Address)
	case !f.present && (was || !f.told):
		f.closeForwardsLocked()
		f.cfg.Log.Info("loopback ports are not forwarded: the address is not on this machine", "address", f.cfg.Address)
	}
	f.told = true
}
