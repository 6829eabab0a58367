package watch

import (
	"context"
	"crypto/rand"
	"sync"
	"time"
	"unsafe"
)

const (
	// idleLimit ends a polled watcher whose client has gone without a word.
	idleLimit = 10 * time.Minute
	// maxQueued bounds the events one polled watcher holds; the kernel's own
	// queue has 16,384 by default (fs.inotify.max_queued_events).
	maxQueued = 32768
	// maxQueuedBytes bounds their memory, in bytes, names included.
	maxQueuedBytes = 4 << 20
	// maxSetBytes bounds the memory of all queues of a Set, in bytes.
	maxSetBytes = 32 << 20
)

// Set owns watchers that are polled by id. Each has one goroutine, which waits
// in Next and moves events to the queue; a timer runs only while the set has
// watchers and is not paused. All methods may be called from any goroutine.
// NewSet makes it and its caller ends it with Close.
//
// T is what the caller wants to get back with the events, such as how to report
// them; it lives as long as the watcher.
type Set[T any] struct {
	idle time.Duration // idleLimit but in tests

	mu      sync.Mutex
	polled  map[string]*polled[T] // guarded by mu; nil after Close
	bytes   int                   // of all queues; guarded by mu
	timer   *time.Timer           // nil while nothing can expire; guarded by mu
	paused  bool                  // guarded by mu
	readers sync.WaitGroup        // one for each watcher's goroutine
}

// polled is one watcher of a Set. What is not constant is guarded by Set.mu.
type polled[T any] struct {
	value   T
	watcher *Watcher
	events  []Event
	bytes   int   // of events
	err     error // the watcher's end; it comes after events
	last    time.Time
}

// NewSet makes an empty set.
func NewSet[T any]() *Set[T] {
	return &Set[T]{idle: idleLimit, polled: make(map[string]*polled[T])}
}

// Create opens a watcher and returns its id. Errors are those of Open, and
// ErrClosed after Close.
func (s *Set[T]) Create(path string, opts Options, value T) (string, error) {
	w, err := Open(path, opts)
	if err != nil {
		return "", err
	}
	p := &polled[T]{value: value, watcher: w}
	id := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.polled == nil {
		_ = w.Close()
		return "", ErrClosed
	}
	p.last = time.Now()
	s.polled[id] = p
	s.readers.Go(func() { s.pump(p) })
	s.armLocked()
	return id, nil
}

// pump queues events until the watcher ends.
func (s *Set[T]) pump(p *polled[T]) {
	defer p.watcher.Close()
	for {
		batch, err := p.watcher.Next(context.Background())
		if !s.queue(p, batch, err) {
			return
		}
	}
}

// queue reports whether the watcher goes on.
func (s *Set[T]) queue(p *polled[T], batch []Event, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.err != nil {
		return false
	}
	for i := range batch {
		size := batch[i].size()
		if len(p.events) >= maxQueued || p.bytes+size > maxQueuedBytes || s.bytes+size > maxSetBytes {
			err = ErrOverflow
			break
		}
		p.events = append(p.events, batch[i])
		p.bytes += size
		s.bytes += size
	}
	p.err = err
	return err == nil
}

func (e *Event) size() int { return int(unsafe.Sizeof(*e)) + len(e.Name) + len(e.From) }

// Events returns what happened since the last call, oldest first, and the value
// given to Create. When nothing is left and the watcher has ended, it returns
// the reason once, as Next does, and the id is gone. ErrOverflow says that the
// queue was full: events before it were returned, the later ones are lost.
// ErrUnknownWatcher for an id that is gone or never was.
func (s *Set[T]) Events(id string) (T, []Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.polled[id]
	if p == nil {
		var none T
		return none, nil, ErrUnknownWatcher
	}
	p.last = time.Now()
	events := p.events
	s.bytes -= p.bytes
	p.events, p.bytes = nil, 0
	if len(events) == 0 && p.err != nil {
		s.dropLocked(id, p)
		return p.value, nil, p.err
	}
	return p.value, events, nil
}

// Len is how many watchers there are.
func (s *Set[T]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.polled)
}

// Remove closes a watcher; ErrUnknownWatcher if there is none.
func (s *Set[T]) Remove(id string) error {
	s.mu.Lock()
	p := s.polled[id]
	if p == nil {
		s.mu.Unlock()
		return ErrUnknownWatcher
	}
	s.dropLocked(id, p)
	s.mu.Unlock()
	return p.watcher.Close()
}

// dropLocked takes a watcher out of the set; its caller closes it.
func (s *Set[T]) dropLocked(id string, p *polled[T]) {
	delete(s.polled, id)
	s.bytes -= p.bytes
	p.events, p.bytes = nil, 0
	if p.err == nil {
		p.err = ErrClosed
	}
	s.armLocked()
}

// Pause stops the timer that ends idle watchers, for a snapshot. Watching and
// polling go on.
func (s *Set[T]) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = true
	s.armLocked()
}

// Resume undoes Pause. The time in between does not count as idle: every
// watcher gets its whole limit again.
func (s *Set[T]) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused {
		return
	}
	s.paused = false
	for _, p := range s.polled {
		p.last = time.Now()
	}
	s.armLocked()
}

// armLocked starts the timer when something can expire and stops it when
// nothing can. One that runs already is left: it fires early at worst.
func (s *Set[T]) armLocked() {
	switch {
	case s.paused || len(s.polled) == 0:
		if s.timer != nil {
			s.timer.Stop()
			s.timer = nil
		}
	case s.timer == nil:
		s.timer = time.AfterFunc(s.idle, s.expire)
	}
}

// expire closes the watchers nobody polls and waits for the next one.
func (s *Set[T]) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused || s.timer == nil {
		return // stopped while it fired
	}
	next := s.idle
	for id, p := range s.polled {
		left := s.idle - time.Since(p.last)
		if left > 0 {
			next = min(next, left)
			continue
		}
		s.dropLocked(id, p)
		// Not under mu: Close waits for a reader that may want it.
		s.readers.Go(func() { _ = p.watcher.Close() })
	}
	if s.timer != nil {
		s.timer.Reset(next)
	}
}

// Close closes every watcher and waits for their goroutines. Later calls of
// Create fail and every id is unknown.
func (s *Set[T]) Close() error {
	s.mu.Lock()
	all := s.polled
	for id, p := range all {
		s.dropLocked(id, p)
		s.readers.Go(func() { _ = p.watcher.Close() })
	}
	s.polled = nil
	s.mu.Unlock()
	s.readers.Wait()
	return nil
}
