package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// limit bounds what a test waits for.
const limit = 10 * time.Second

// journal records, in order, what a Coordinator had done.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

// take answers what was recorded since the last take.
func (j *journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	return lines
}

// part is a Quiescer. It fails the test when it is quiesced twice in a row.
type part struct {
	t        *testing.T
	j        *journal
	name     string
	err      error         // of Quiesce
	held     chan struct{} // Resume waits for it, when it is not nil
	resuming chan struct{} // Resume has been called; nil: nobody asks
	mu       sync.Mutex
	resting  bool
}

func (p *part) Quiesce(ctx context.Context) error {
	if ctx.Err() != nil {
		p.t.Errorf("%s gets no time to come to rest", p.name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resting {
		p.t.Errorf("%s is quiesced again", p.name)
	}
	p.resting = true
	p.j.add("quiesce %s", p.name)
	return p.err
}

func (p *part) Resume() {
	if p.resuming != nil {
		p.resuming <- struct{}{}
	}
	if p.held != nil {
		<-p.held
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting = false
	p.j.add("resume %s", p.name)
}

// conns are the Connections.
type conns struct{ j *journal }

func (c conns) Rest() { c.j.add("rest") }
func (c conns) Wake() { c.j.add("wake") }
func (c conns) Drop(_ context.Context, all bool, cause error) {
	if !errors.Is(cause, ErrRestored) {
		c.j.add("dropped for %v", cause)
	}
	c.j.add("drop all=%v", all)
}

// load is the Workload. Of groups it freezes so many as its fields say.
type load struct {
	j      *journal
	mu     sync.Mutex
	frozen bool
	result Frozen
	err    error         // of Freeze
	stuck  int           // so many calls of Thaw fail
	thawed chan struct{} // says that there was a Thaw
}

func (l *load) Freeze(ctx context.Context) (Frozen, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return Frozen{}, l.err
	}
	l.frozen = true
	l.j.add("freeze")
	if l.result.Frozen < l.result.Groups {
		<-ctx.Done()
	}
	return l.result, nil
}

func (l *load) Thaw() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.j.add("thaw")
	if l.stuck > 0 {
		l.stuck--
		return errors.New("stuck")
	}
	l.frozen = false
	select {
	case l.thawed <- struct{}{}:
	default:
	}
	return nil
}

// rig is a Coordinator with parts "first" and "second", which was opened later.
type rig struct {
	*Coordinator
	j             *journal
	first, second *part
	load          *load
	sync          func() error // what Config.Sync does
}

func newRig(t *testing.T) *rig {
	t.Helper()
	leaktest.Check(t)
	j := &journal{}
	r := &rig{j: j, load: &load{j: j, thawed: make(chan struct{}, 1)}, sync: func() error { return nil }}
	r.Coordinator = New(Config{
		Sync:     func() error { j.add("sync"); return r.sync() },
		Shrink:   func() { j.add("shrink") },
		Workload: r.load,
		Log:      slog.New(slog.DiscardHandler),
	})
	r.first, r.second = &part{t: t, j: j, name: "first"}, &part{t: t, j: j, name: "second"}
	r.Register(r.first)
	r.Register(r.second)
	r.Serve(conns{j})
	return r
}

// did fails the test unless the journal has exactly those lines.
func (r *rig) did(t *testing.T, want ...string) {
	t.Helper()
	if got := r.j.take(); !slices.Equal(got, want) {
		t.Errorf("did %q, want %q", got, want)
	}
}

// is fails the test unless the status is that.
func (r *rig) is(t *testing.T, want Status) {
	t.Helper()
	if got := r.Status(); got != want {
		t.Errorf("status %+v, want %+v", got, want)
	}
	if away := want.State == Prepared || want.Frozen; r.Away() != away {
		t.Errorf("away %v in %+v", r.Away(), want)
	}
}

// await waits until the state is that.
func (r *rig) await(t *testing.T, want State) {
	t.Helper()
	for end := time.Now().Add(limit); r.Status().State != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("state is %v, not %v", r.Status().State, want)
		}
	}
}

// begin calls f on a goroutine, and answers what is closed at its end.
func begin(f func()) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		f()
	}()
	return over
}

// wait fails the test when c does not come.
func wait[T any](t *testing.T, what string, c <-chan T) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatalf("%s does not come", what)
	}
}

// not fails the test when c has come. What it looks for would have been there
// at once.
func not[T any](t *testing.T, what string, c <-chan T) {
	t.Helper()
	select {
	case <-c:
		t.Fatalf("%s comes too early", what)
	case <-time.After(20 * time.Millisecond):
	}
}
