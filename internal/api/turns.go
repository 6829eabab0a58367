package api

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// mostWaiting bounds how many callers may wait for a turn. A host that sends
// more has given up on the earlier ones.
const mostWaiting = 32

// errNoTurn is for a caller who did not get in.
var errNoTurn = errors.New("other calls go first, try again")

// turns lets one caller at a time in, in about the order they came. Who waits
// and goes away holds nobody up.
type turns struct {
	free    chan struct{} // has an element while nobody is in
	waiting atomic.Int32
}

func newTurns() turns {
	free := make(chan struct{}, 1)
	free <- struct{}{}
	return turns{free: free}
}

// take waits for a turn. The caller calls leave when it is over.
func (t *turns) take(ctx context.Context) (leave func(), err error) {
	if t.waiting.Add(1) > mostWaiting {
		t.waiting.Add(-1)
		return nil, errNoTurn
	}
	defer t.waiting.Add(-1)
	leave = func() { t.free <- struct{}{} }
	select {
	case <-t.free:
		if ctx.Err() == nil {
			return leave, nil
		}
		leave() // both at once, and nobody to do it for
	case <-ctx.Done():
	}
	return nil, fmt.Errorf("%w: %w", errNoTurn, context.Cause(ctx))
}
