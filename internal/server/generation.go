package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// lookPause lies between two looks at connections that are to be closed. A
	// connection is at rest when it is idle in both and nothing was read in
	// between: what was read is a request, or less, by then.
	lookPause = 3 * time.Millisecond
	// restLooks bounds how often Rest looks.
	restLooks = 4
	// firstGrace is how long a connection may be open before its first request
	// and not count as idle: the request is on its way.
	firstGrace = 100 * time.Millisecond
	// dropGrace is what requests on a dropped connection get to end, and their
	// ends to be acknowledged by the peer.
	dropGrace = 500 * time.Millisecond
)

// life is what a connection is judged by around a snapshot.
type life struct {
	registry *registry
	born     uint64 // registry.epoch when it was accepted
	accepted time.Time
	end      context.CancelCauseFunc // ends the contexts of its requests
	state    atomic.Int32            // http.ConnState
	spared   atomic.Bool             // a Close was left undone; see registry.sparing

	reads atomic.Uint64 // that returned something; and refused
	seen  uint64        // reads at the last look; guarded by registry.mu
	idle  bool          // at the last look; guarded by registry.mu
}

// refused is the bit of life.reads from which on nothing is read any more: what
// still comes is not the beginning of a request that would be half served.
const refused = 1 << 63

// registry knows the connections that are open.
type registry struct {
	mu    sync.Mutex
	epoch uint64             // calls of Rest so far; guarded by mu, as is all below
	all   map[*conn]struct{} //
	timer *time.Timer        // looks while resting; nil before the first Rest
	armed bool               // the timer runs

	resting atomic.Bool
	// sparing is set while net/http is told to stop keeping connections alive.
	// It would close those that it takes for idle, among them such on which it
	// has read a request and not yet said so.
	sparing atomic.Bool
	drops   sync.WaitGroup // goroutines that end dropped connections
}

// Read counts, to tell whether a request may be on its way.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.socket.Read(p)
	if n > 0 && c.reads.Add(1)&refused != 0 {
		return 0, io.EOF
	}
	return n, err //nolint:wrapcheck // net/http looks at it
}

// Close is net/http's: see registry.sparing.
func (c *conn) Close() error {
	if c.registry != nil && c.registry.sparing.Load() {
		c.spared.Store(true)
		return nil
	}
	c.timer.Stop()
	return c.socket.Close() //nolint:wrapcheck // net/http looks at it
}

// enter begins the life of a connection; net/http calls it before track.
func (r *registry) enter(ctx context.Context, nc net.Conn) context.Context {
	c := nc.(*conn)
	c.registry, c.accepted = r, time.Now()
	ctx, c.end = context.WithCancelCause(withConn(ctx, nc))
	r.mu.Lock()
	defer r.mu.Unlock()
	c.born = r.epoch
	if r.all == nil {
		r.all = make(map[*conn]struct{})
	}
	r.all[c] = struct{}{}
	return ctx
}

// track follows the states of a connection; see http.Server.ConnState. Those
// of HTTP/2 are idle while they have no stream.
func (r *registry) track(nc net.Conn, state http.ConnState) {
	c := nc.(*conn)
	c.state.Store(int32(state))
	switch state {
	case http.StateIdle:
		if r.resting.Load() {
			r.lookSoon()
		}
	case http.StateClosed, http.StateHijacked:
		c.end(nil)
		if c.spared.Load() {
			_ = c.socket.Close() // most often it is closed
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.all, c)
		if len(r.all) == 0 {
			r.all = nil // maps do not shrink by themselves
		}
	default:
	}
}

// retire closes the connection when it carries no request: it is idle, or has
// had none for firstGrace, was so at the last look, and nothing came in between
// or waits to be read. The caller holds registry.mu.
func (c *conn) retire() {
	reads := c.reads.Load()
	state := http.ConnState(c.state.Load())
	fresh := state == http.StateNew && reads == 0
	idle := state == http.StateIdle || fresh
	rest := idle && c.idle && reads == c.seen && (!fresh || time.Since(c.accepted) > firstGrace)
	c.idle, c.seen = idle, reads
	if rest && !c.readable() && c.reads.CompareAndSwap(reads, reads|refused) {
		_ = c.socket.Close() // its goroutine notices
	}
}

// look closes what is at rest and older than the last Rest: a younger one is of
// somebody who brings us back. It tells whether to look again, for what may be
// at rest by then, or has been closed and is not gone.
func (r *registry) look() (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.all {
		if c.born < r.epoch {
			c.retire()
			again = again || c.idle
		}
	}
	return again
}

// lookSoon looks a while after a connection has become idle.
func (r *registry) lookSoon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.armed && r.timer != nil {
		r.armed = true
		r.timer.Reset(lookPause)
	}
}

// lookAgain is what the timer runs.
func (r *registry) lookAgain() {
	r.mu.Lock()
	r.armed = false
	r.mu.Unlock()
	if r.resting.Load() && r.look() {
		r.lookSoon()
	}
}

// Rest closes every idle connection, over HTTP/2 as well, and has those in use
// closed once they are idle. Streams go on. Connections that are accepted later
// are younger than those there are. It takes some milliseconds.
func (s *Server) Rest() {
	r := &s.conns
	r.mu.Lock()
	r.epoch++
	if r.timer == nil {
		r.timer = time.AfterFunc(time.Hour, r.lookAgain)
		r.timer.Stop()
	}
	r.mu.Unlock()
	r.resting.Store(true)
	r.sparing.Store(true)
	s.http.SetKeepAlivesEnabled(false)
	r.sparing.Store(false)
	for range restLooks {
		if !r.look() {
			return
		}
		time.Sleep(lookPause)
	}
	r.lookSoon() // for what may have a request on its way
}

// Wake ends Rest: connections are kept alive again.
func (s *Server) Wake() {
	s.conns.resting.Store(false)
	s.http.SetKeepAlivesEnabled(true)
}

// Drop ends the requests of all connections that are older than the last Rest,
// or of all there are, with cause as the cause of their contexts, and closes
// the connections when that is done or dropGrace is over. The connection of the
// request with the context keep stays. Drop does not wait for the end.
func (s *Server) Drop(keep context.Context, all bool, cause error) {
	r := &s.conns
	mine, _ := keep.Value(connKey{}).(*conn)
	var old []*conn
	r.mu.Lock()
	for c := range r.all {
		if c != mine && (all || c.born < r.epoch) {
			old = append(old, c)
		}
	}
	r.mu.Unlock()
	if len(old) == 0 {
		return
	}
	for _, c := range old {
		c.end(cause)
	}
	r.drops.Go(func() { r.finish(old) })
}

// finish closes connections whose requests have been told to end: in order
// when they have and the peer has taken everything, else by force.
func (r *registry) finish(old []*conn) {
	for end := time.Now().Add(dropGrace); time.Now().Before(end); time.Sleep(lookPause) {
		if old = r.closeDone(old); len(old) == 0 {
			return
		}
	}
	for _, c := range old {
		if c.unsent() {
			c.abort() // a ghost's: nothing is kept for the kernel to repeat
			continue
		}
		_ = c.socket.Close() // a request that is blocked on it fails
	}
}

// closeDone closes those that are at rest and have nothing to send, and answers
// those that are not gone.
func (r *registry) closeDone(old []*conn) (left []*conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	left = old[:0]
	for _, c := range old {
		if _, open := r.all[c]; !open {
			continue
		}
		if !c.unsent() {
			c.retire()
		}
		left = append(left, c)
	}
	return left
}

// close waits for what Drop has begun, and closes what net/http has lost sight
// of because it was spared.
func (r *registry) close() {
	r.resting.Store(false)
	r.drops.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
	for c := range r.all {
		_ = c.socket.Close()
	}
}

// readable tells whether the kernel holds something for us to read: a request,
// most likely.
func (c *conn) readable() bool { return c.holds(linux.Buffered) }

// unsent tells whether the peer has yet to acknowledge something.
func (c *conn) unsent() bool { return c.holds(linux.Unsent) }

// holds tells whether count finds any bytes; not on a connection that is closed.
func (c *conn) holds(count func(fd uintptr) (int, error)) (yes bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) { // closed: nothing is held
		n, err := count(fd)
		yes = err == nil && n > 0
	})
	return yes
}
