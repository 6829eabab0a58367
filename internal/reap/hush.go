package reap

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// hushTime is for how long at a time SIGCHLD is not heard, and by how much later
// therefore an end may be noticed that nobody but Run looks for.
const hushTime = 2 * time.Millisecond

// hush keeps SIGCHLD away. The kernel sends it to the thread that made the child:
// to the one that, when a command ends at once, waits for just that. It would be
// interrupted to wake a second thread, and that one to wake a third, for nothing.
type hush struct {
	mu     sync.Mutex
	on     bool              // guarded by mu, as is all below
	until  time.Time         // when it is over
	before linux.Disposition // of SIGCHLD, while on
	ended  bool              // for good

	listening sync.WaitGroup // calls of listen that are due, or run
}

// Hush says that a child is about to be started whose end the caller looks for
// itself at first, with Child.Pidfd and Reap. What else ends meanwhile may be
// noticed up to hushTime later.
func (r *Reaper) Hush() {
	h := &r.hush
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = time.Now().Add(hushTime)
	if h.on || h.ended {
		return
	}
	var err error
	if h.before, err = linux.DefaultSignal(unix.SIGCHLD); err == nil {
		h.on = true
		h.listening.Add(1)
		time.AfterFunc(hushTime, r.listen)
	}
}

// listen reaps what was not heard of, and ends the hush unless a later start has
// prolonged it.
func (r *Reaper) listen() {
	h := &r.hush
	defer h.listening.Done()
	h.mu.Lock()
	if !h.on { // Run has ended
		h.mu.Unlock()
		return
	}
	if left := time.Until(h.until); left > 0 {
		h.listening.Add(1)
		time.AfterFunc(left, r.listen)
	} else {
		h.restore()
	}
	h.mu.Unlock()
	r.Reap() // after restore: from there on nothing is missed
}

// restore has SIGCHLD heard again. The caller holds mu.
func (h *hush) restore() {
	h.on = false
	_ = h.before.Restore(unix.SIGCHLD) // it was like that before: the kernel takes it
}

// end ends the hush for good. Nothing reaps for it afterwards.
func (h *hush) end() {
	h.mu.Lock()
	if h.on {
		h.restore()
	}
	h.ended = true
	h.mu.Unlock()
	h.listening.Wait()
}
