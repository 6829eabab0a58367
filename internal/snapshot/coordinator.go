package snapshot

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrPrepared is returned for a start while the guest is prepared for a
// snapshot, or its workload is frozen.
var ErrPrepared = errors.New("prepared for a snapshot")

// ErrRestored ends requests whose connection is older than a restore.
var ErrRestored = errors.New("restored from a snapshot")

// State is where the guest is on its way to a snapshot and back.
type State uint32

// The states, in the order they follow each other in.
const (
	Running State = iota
	Preparing
	Prepared
	Restoring
)

var stateNames = [...]string{"running", "preparing", "prepared", "restoring"}

// String is the state's name on the wire.
func (s State) String() string { return stateNames[s] }

// Quiescer is a part that works by itself: on a timer, or because something in
// the guest happened.
type Quiescer interface {
	// Quiesce stops that until Resume. It returns when it has stopped, or when
	// ctx ends.
	Quiesce(ctx context.Context) error
	// Resume undoes Quiesce, also one that failed. It does not block.
	Resume()
}

// Connections are those of clients.
type Connections interface {
	// Rest closes the idle ones, and those in use once they are idle, until
	// Wake. What is accepted from its call on belongs to a newer generation.
	Rest()
	Wake()
	// Drop ends the requests of connections that are older than the last Rest,
	// or of all that are there, with cause, and then the connections. The
	// connection of the request with the context keep stays. It does not wait.
	Drop(keep context.Context, all bool, cause error)
}

// Workload is what the guest runs.
type Workload interface {
	// Freeze stops it, and looks until ctx ends whether it has stopped. It
	// fails where there is no way to.
	Freeze(ctx context.Context) (Frozen, error)
	// Thaw lets it go on.
	Thaw() error
}

// Frozen counts groups of processes.
type Frozen struct {
	Groups int // all there are
	Frozen int // seen to have stopped
	Failed int // that could not be told to stop
}

// Config is what a Coordinator works with.
type Config struct {
	// Sync writes the root filesystem out. It may block for long.
	Sync func() error
	// Shrink makes the heap small.
	Shrink func()
	// Reseed, when not nil, makes random numbers differ from those of other
	// machines that the snapshot was restored to.
	Reseed   func()
	Workload Workload
	Log      *slog.Logger
}

// Status is what a Coordinator tells of itself.
type Status struct {
	State      State
	Generation uint64
	// Pending: a Prepare has come, and no Restore since.
	Pending bool
	Frozen  bool // the workload is
}

// Coordinator holds the state. New makes it and Close ends it.
type Coordinator struct {
	cfg    Config
	limits limits

	// away has a bit for each reason why something has to be done before a
	// request can be served.
	away atomic.Uint32

	// turn is held through each transition. The state changes under it and mu.
	turn  sync.Mutex
	stuck bool // some of the workload did not thaw; guarded by turn

	mu         sync.Mutex
	moved      *sync.Cond // with mu: the state has changed
	state      State      // guarded by mu, as is all below
	generation uint64
	pending    bool
	jumped     bool // the clock has, since the last Restore
	frozen     bool
	watchdog   *time.Timer   // runs thaw while frozen
	starting   int           // starts that have passed the gate and not left
	idle       chan struct{} // closed when starting is 0; nil while nobody waits for that
	parts      []Quiescer
	conns      Connections   // nil until Serve
	syncing    chan struct{} // closed when the sync under way is over; nil without
}

// Bits of Coordinator.away.
const (
	awayPrepared = 1 << iota
	awayFrozen
)

// New makes a Coordinator of a guest that runs, in generation 1.
func New(cfg Config) *Coordinator {
	c := &Coordinator{cfg: cfg, limits: defaultLimits, generation: 1}
	c.moved = sync.NewCond(&c.mu)
	return c
}

// Register adds a part that was opened after those before it.
func (c *Coordinator) Register(q Quiescer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parts = append(c.parts, q)
}

// Serve says which connections there are, before the first is accepted.
func (c *Coordinator) Serve(conns Connections) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = conns
}

// Status answers the state as it is at the moment.
func (c *Coordinator) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Status{State: c.state, Generation: c.generation, Pending: c.pending, Frozen: c.frozen}
}

// Generation counts restores: 1 before the first.
func (c *Coordinator) Generation() uint64 { return c.Status().Generation }

// Pending tells whether a Prepare has come, and no Restore since.
func (c *Coordinator) Pending() bool { return c.Status().Pending }

// Away tells whether Return has something to do.
func (c *Coordinator) Away() bool { return c.away.Load() != 0 }

// Enter passes the gate to start a process, and leave tells that the start is
// over. While a transition is under way it waits. It fails with ErrPrepared
// when there is no going on without Return.
func (c *Coordinator) Enter() (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.state == Preparing || c.state == Restoring {
		c.moved.Wait()
	}
	if !c.openLocked() {
		return nil, ErrPrepared
	}
	c.starting++
	return c.leave, nil
}

func (c *Coordinator) openLocked() bool { return c.state == Running && !c.frozen }

// Await waits until the gate is open, for a start that has nobody to bring the
// guest back. The error is that of ctx.
func (c *Coordinator) Await(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock() // or it comes before the wait that it is to end
		defer c.mu.Unlock()
		c.moved.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.openLocked() && ctx.Err() == nil {
		c.moved.Wait()
	}
	return context.Cause(ctx)
}

func (c *Coordinator) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting--
	if c.starting == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// move changes the state and answers the one before. The caller has the turn.
func (c *Coordinator) move(to State) (from State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, c.state = c.state, to
	c.noteLocked()
	c.moved.Broadcast()
	return from
}

// noteLocked makes away agree with the state.
func (c *Coordinator) noteLocked() {
	var away uint32
	if c.state == Prepared {
		away |= awayPrepared
	}
	if c.frozen {
		away |= awayFrozen
	}
	c.away.Store(away)
}

// all answers the parts, in order, and the connections.
func (c *Coordinator) all() ([]Quiescer, Connections) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.parts), c.conns
}
