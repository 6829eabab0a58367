package api

import (
	"context"
	"fmt"
	"time"
)

const (
	// maxThreads bounds the requests that hold a thread for as long as their
	// client likes: those that work on files as a user, since the identity is
	// the thread's. Without a bound, clients that send or read nothing could
	// use up the machine's threads, and a Go program that gets none dies.
	maxThreads = 256
	// threadWait is how long a request waits for one of them.
	threadWait = 10 * time.Second
)

// slots lets a number of callers in at a time.
type slots struct {
	taken chan struct{} // has an element for each that is in
	wait  time.Duration // for a free one
}

func newSlots(n int, wait time.Duration) *slots {
	return &slots{taken: make(chan struct{}, n), wait: wait}
}

// within runs fn in a slot, or without one where none is needed. If none gets
// free in time it is errNoTurn, and fn was not called.
func (s *slots) within(ctx context.Context, needed bool, fn func() error) error {
	if !needed {
		return fn()
	}
	select {
	case s.taken <- struct{}{}:
	default:
		if err := s.await(ctx); err != nil {
			return err
		}
	}
	defer func() { <-s.taken }()
	return fn()
}

func (s *slots) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	select {
	case s.taken <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errNoTurn, context.Cause(ctx))
	}
}
