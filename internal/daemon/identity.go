package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/mmds"
)

// How often the metadata service is asked until it answers, from the wire
// contract.
const (
	askEager   = 50 * time.Millisecond
	eagerSpell = time.Minute
	askPatient = 5 * time.Second
	// answerLimit bounds one try.
	answerLimit = 5 * time.Second
)

// identity finds out which sandbox this is and makes it known. When it runs, and
// after each call of Again, it asks until it is told; then it does nothing.
type identity struct {
	fetch    func(context.Context) (mmds.Metadata, error)
	settings *guest.Store
	root     string // "/", but in tests
	log      *slog.Logger

	again  chan struct{}
	rest   chan pause
	resume chan struct{} // of the pause; nil while there is none

	mu sync.Mutex // serialises Publish
}

// pause makes run close stopped once it does nothing, and rest until resume is
// closed.
type pause struct{ stopped, resume chan struct{} }

func newIdentity(fetch func(context.Context) (mmds.Metadata, error), settings *guest.Store, root string, log *slog.Logger) *identity {
	return &identity{
		fetch: fetch, settings: settings, root: root, log: log,
		again: make(chan struct{}, 1), rest: make(chan pause),
	}
}

// Fetch asks once, and changes nothing.
func (i *identity) Fetch(ctx context.Context) (guest.Identity, error) {
	m, err := i.fetch(ctx)
	if err != nil {
		return guest.Identity{}, fmt.Errorf("identity: %w", err)
	}
	return guest.Identity{Instance: m.InstanceID, Template: m.EnvID, TokenHash: m.AccessTokenHash}, nil
}

// Publish makes id known to processes: by their environment and by files.
func (i *identity) Publish(id guest.Identity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.settings.Load().Identity == id {
		return
	}
	i.settings.Update(func(s *guest.Settings) { s.Identify(id) })
	if err := guest.WriteIdentity(i.root, id); err != nil {
		i.log.Warn("the identity is in the environment only", "error", err)
	}
	i.log.Info("identity known", "instance", id.Instance, "template", id.Template)
}

// Again begins to ask anew. It does not block.
func (i *identity) Again() {
	select {
	case i.again <- struct{}{}:
	default:
	}
}

// Quiesce makes run rest until Resume. A try under way is given up.
func (i *identity) Quiesce(ctx context.Context) error {
	p := pause{stopped: make(chan struct{}), resume: make(chan struct{})}
	select {
	case i.rest <- p:
		i.resume = p.resume
		<-p.stopped
		return nil
	case <-ctx.Done():
		return fmt.Errorf("rest from asking for the identity: %w", context.Cause(ctx))
	}
}

// Resume undoes Quiesce. The two are not called at the same time.
func (i *identity) Resume() {
	if i.resume != nil {
		close(i.resume)
		i.resume = nil
	}
}

// run asks while it is wanted.
func (i *identity) run(ctx context.Context) error {
	q := inquiry{identity: i, next: time.NewTimer(0), began: time.Now(), wanted: true}
	defer q.stop()
	for {
		select {
		case <-q.next.C:
			q.begin(ctx)
		case err := <-q.tried:
			q.end(err)
		case <-i.again:
			q.began, q.wanted, q.told = time.Now(), true, false
			q.schedule(0)
		case p := <-i.rest:
			q.stop()
			close(p.stopped)
			select {
			case <-p.resume:
				q.schedule(0)
			case <-ctx.Done():
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// inquiry is the state of run.
type inquiry struct {
	*identity
	next   *time.Timer // of the next try
	began  time.Time
	wanted bool // nobody has told us yet
	told   bool // the log knows that it takes long

	tried  chan error // of the try under way; nil without
	cancel context.CancelFunc
}

// begin starts a try.
func (q *inquiry) begin(ctx context.Context) {
	tried := make(chan error, 1)
	ctx, q.cancel = context.WithTimeout(ctx, answerLimit)
	q.tried = tried
	go func() {
		id, err := q.Fetch(ctx)
		switch {
		case err != nil:
		case ctx.Err() != nil: // what it says may be old by now
			err = context.Cause(ctx)
		case id.Instance == "":
			err = errNobody
		default:
			q.Publish(id)
		}
		tried <- err
	}()
}

var errNobody = errors.New("identity: no instance ID in the metadata")

// end takes the result of a try.
func (q *inquiry) end(err error) {
	q.cancel()
	q.tried = nil
	if err == nil {
		q.wanted = false
		return
	}
	if time.Since(q.began) < eagerSpell {
		q.schedule(askEager)
		return
	}
	if !q.told {
		q.log.Info("nobody says which sandbox this is; asking on, less often", "reason", err)
		q.told = true
	}
	q.schedule(askPatient)
}

// schedule has the next try come after a pause, if one is wanted and none is
// under way.
func (q *inquiry) schedule(after time.Duration) {
	if q.wanted && q.tried == nil {
		q.next.Reset(after)
	}
}

// stop gives a try under way up, and plans none.
func (q *inquiry) stop() {
	q.next.Stop()
	if q.tried != nil {
		q.cancel()
		if <-q.tried == nil {
			q.wanted = false
		}
		q.tried = nil
	}
}
