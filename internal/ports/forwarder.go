package ports

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// ErrClosed is returned after Close.
var ErrClosed = errors.New("ports are not watched any more")

// ErrAddress means that nothing can be forwarded to such an address.
var ErrAddress = errors.New("not an address to forward ports to")

// Config is what a Forwarder works with.
type Config struct {
	// Address is where loopback ports become reachable; the zero Addr for
	// nowhere. It may be missing on this machine, come later and go again.
	Address netip.Addr
	// Own is the daemon's port, which is not forwarded.
	Own uint16
	// Active tells whether programs run that may open a port any time. It does
	// not block: it is called with locks held.
	Active func() bool
	Log    *slog.Logger

	bound bool // do not steer; for tests
}

// Forwarder finds listening sockets and forwards ports. Open makes it, Run
// serves it and Close ends it; the methods between may be called from any
// goroutine.
type Forwarder struct {
	cfg    Config
	epoll  *linux.Epoll
	began  time.Time // what touched counts from
	ctx    context.Context
	cancel context.CancelFunc // ends dials
	conns  sync.WaitGroup
	pipes  pipePool
	stats  counters

	rare    atomic.Bool  // the next look is far away
	touched atomic.Int64 // when something last changed, since began

	mu        sync.Mutex
	kernel    *kernel      // guarded by mu, as is all below; nil after Close
	timer     *linux.Timer // rings for the next look
	quiesced  bool
	present   bool          // this machine has the address
	told      bool          // the log has said whether
	failing   bool          // the last look failed
	lookedAt  time.Time     // when the last look was over
	cost      time.Duration // of the last look
	answer    []Listener    // the kernel's last answer, as it came
	spare     []Listener    // memory for the next answer
	listeners []Listener    // what the answer came to
	forwards  map[uint16]*forward
	byID      map[int32]*forward
	lastID    int32
	most      int       // forwards at a time
	retryAt   time.Time // when to try again what could not be forwarded; zero: nothing
	full      []int32   // not accepting, for want of descriptors
	door      *door     // nil: forwards are bound, or there were none yet
	knocked   bool      // whether there can be a door was tried
	open      map[*conn]struct{}
	watches   int
	changed   chan struct{} // closed at the next change
}

// What the poller reports things as; forwards have the numbers above.
const (
	timerID int32 = iota
	destroyedID
	addressesID
	doorID
	lastFixedID
)

// Open makes a forwarder. It forwards nothing until Run. ErrAddress is the
// caller's mistake; other errors mean that this kernel lacks something.
func Open(cfg Config) (_ *Forwarder, err error) {
	cfg.Address = cfg.Address.Unmap()
	if a := cfg.Address; a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
		return nil, fmt.Errorf("%w: %v", ErrAddress, a)
	}
	f := &Forwarder{
		cfg: cfg, began: time.Now(), most: forwardLimit(),
		forwards: make(map[uint16]*forward), byID: make(map[int32]*forward),
		lastID: lastFixedID, open: make(map[*conn]struct{}),
		changed: make(chan struct{}),
	}
	if f.kernel, err = openKernel(); err != nil {
		return nil, fmt.Errorf("watch ports: %w", err)
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if f.timer, err = linux.OpenTimer(); err != nil {
		return nil, fmt.Errorf("watch ports: %w", err)
	}
	if f.epoll, err = linux.OpenEpoll(); err != nil {
		return nil, fmt.Errorf("watch ports: %w", err)
	}
	err = errors.Join(
		f.epoll.Add(f.timer.FD(), timerID),
		f.epoll.Add(f.kernel.destroyed.FD(), destroyedID),
		f.epoll.Add(f.kernel.addresses.FD(), addressesID),
	)
	if err != nil {
		return nil, fmt.Errorf("watch ports: %w", err)
	}
	return f, nil
}

// Run looks for listeners and accepts connections until Close.
func (f *Forwarder) Run(context.Context) error {
	f.mu.Lock()
	if f.kernel != nil {
		f.checkAddressLocked()
		f.lookLocked()
	}
	f.mu.Unlock()
	var events [64]unix.EpollEvent
	for {
		n, err := f.epoll.Wait(events[:])
		if err != nil {
			return f.ended(err)
		}
		for _, e := range events[:n] {
			f.serve(e.Fd)
		}
	}
}

// ended is err, unless Close is the reason.
func (f *Forwarder) ended(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kernel == nil {
		return nil
	}
	return fmt.Errorf("watch ports: %w", err)
}

// serve does what an event asks for.
func (f *Forwarder) serve(id int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kernel == nil {
		return
	}
	switch id {
	case timerID:
		f.lookLocked()
		f.armLocked(f.timer.FD(), id)
	case destroyedID:
		if f.kernel.reports(f.forwardedLocked) {
			f.lookSoonLocked()
		}
		f.armLocked(f.kernel.destroyed.FD(), id)
	case addressesID:
		f.kernel.flush(f.kernel.addresses)
		f.checkAddressLocked()
		f.lookLocked()
		f.armLocked(f.kernel.addresses.FD(), id)
	default:
		f.acceptLocked(id)
	}
}

func (f *Forwarder) armLocked(fd int, id int32) {
	if err := f.epoll.Arm(fd, id); err != nil {
		f.cfg.Log.Error("ports may not be watched any more", "error", err)
	}
}

func (f *Forwarder) forwardedLocked(port uint16) bool { return f.forwards[port] != nil }

// Quiesce closes all forwards and stops looking. Connections that are forwarded
// already go on.
func (f *Forwarder) Quiesce(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quiesced = true
	if f.kernel != nil {
		f.lookLocked()
	}
	return nil
}

// Resume undoes Quiesce, and looks at once.
func (f *Forwarder) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kernel == nil || !f.quiesced {
		return
	}
	f.quiesced = false
	f.forgetLocked()
	f.touch()
	f.sleepLocked(0)
}

// Close closes all forwards and connections, makes Run return and waits for
// everything but Run.
func (f *Forwarder) Close() error {
	f.mu.Lock()
	if f.kernel == nil {
		f.mu.Unlock()
		return nil
	}
	f.closeForwardsLocked()
	if f.door != nil {
		f.door.close()
		f.door = nil
	}
	f.kernel.close()
	f.kernel = nil
	var err error
	if f.timer != nil {
		err = f.timer.Close()
	}
	for c := range f.open {
		c.close()
	}
	f.cancel()
	f.notifyLocked()
	f.mu.Unlock()
	if f.epoll != nil {
		err = errors.Join(err, f.epoll.Close())
	}
	f.conns.Wait()
	f.pipes.close()
	return err
}
