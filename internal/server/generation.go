package server

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// quietTime is for how long nothing may have moved on a connection at rest of
	// which net/http has said all that it knows, surelyQuiet of any other: what
	// was read is a request by then, also on a machine without time.
	quietTime   = 10 * time.Millisecond
	surelyQuiet = 100 * time.Millisecond
	// surelySent is that of one on which the end of the last response is to be
	// sent yet, unless the client has reset that stream: to close it loses an answer.
	surelySent = time.Second
	// lookPause lies between two looks at connections that are to be closed.
	lookPause = 3 * time.Millisecond
	// restLooks bounds how often Rest looks.
	restLooks = 5
	// dropGrace is what requests on a dropped connection get to end, and their
	// ends to be acknowledged by the peer.
	dropGrace = 500 * time.Millisecond
)

// life is what a connection is judged by around a snapshot.
type life struct {
	registry *registry
	born     uint64                  // registry.epoch when it was accepted
	end      context.CancelCauseFunc // ends the contexts of its requests
	state    atomic.Int32            // http.ConnState
	spared   atomic.Bool             // a Close was left undone; see registry.sparing
	h2       atomic.Bool             // it speaks HTTP/2

	reads atomic.Uint64 // that returned something; and refused
	moved atomic.Int64  // when something was read or the state changed last; in ns since began
	// When it became idle: reads then, and whether something was written since.
	// On HTTP/2 net/http says so a moment before it sends the last response's end.
	idleReads atomic.Uint64
	wrote     atomic.Bool
}

// began is what times are counted from.
var began = time.Now()

func (l *life) move() { l.moved.Store(int64(time.Since(began))) }

// still is for how long nothing has moved.
func (l *life) still() time.Duration { return time.Since(began) - time.Duration(l.moved.Load()) }

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
	idles *time.Timer        // runs sweep while a connection is open; nil before the first one

	patience time.Duration // idleTimeout, but in tests
	crowded  time.Duration // crowdedIdle, but in tests
	unread   time.Duration // headerTimeout, but in tests
	places   chan struct{} // an element for each connection, until it has ended; see bounded

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
	if n > 0 {
		c.move()
		switch reads := c.reads.Add(1); {
		case reads&refused != 0:
			return 0, io.EOF
		case reads == 1:
			c.h2.Store(bytes.HasPrefix(p[:n], []byte("PRI"))) // RFC 9113, 3.4
		}
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
	c.registry = r
	c.move()
	ctx, c.end = context.WithCancelCause(withConn(ctx, nc))
	r.mu.Lock()
	defer r.mu.Unlock()
	c.born = r.epoch
	if r.all == nil {
		r.all = make(map[*conn]struct{})
		r.sweepLater()
	}
	r.all[c] = struct{}{}
	return ctx
}

// sweepLater has the idle connections looked at, after a tenth of the time that
// they get. The caller holds mu.
func (r *registry) sweepLater() {
	if r.idles == nil {
		r.idles = time.AfterFunc(r.patience/10, r.sweep)
		return
	}
	r.idles.Reset(r.patience / 10)
}

// sweep closes the connections that have been idle for too long. With its own
// time limit, net/http holds on to an HTTP/2 connection and its buffers for as
// long after the connection was cut off amid requests: it stops that timer
// before it ends the streams, and the end of the last one starts it again.
func (r *registry) sweep() {
	r.closeIdle(r.patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) > 0 {
		r.sweepLater()
	}
}

// closeIdle closes the connections that have been idle for as long.
func (r *registry) closeIdle(limit time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.all {
		if c.idle() && c.still() >= limit {
			c.retire()
		}
	}
}

// track follows the states of a connection; see http.Server.ConnState. Those
// of HTTP/2 are idle while they have no stream.
func (r *registry) track(nc net.Conn, state http.ConnState) {
	c := nc.(*conn)
	c.move()
	if state == http.StateIdle {
		c.idleReads.Store(c.reads.Load())
		c.wrote.Store(false)
		if !c.h2.Load() { // there the last answer may not have been sent yet
			c.answering.Store(false)
			c.body.over(c)
		}
	}
	c.state.Store(int32(state))
	switch state {
	case http.StateIdle:
		if r.resting.Load() {
			r.lookSoon()
		}
	case http.StateClosed, http.StateHijacked:
		c.end(nil)
		c.body.over(c)
		if c.spared.Load() {
			_ = c.socket.Close() // most often it is closed
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		defer func() { <-r.places }() // who gets it finds this one gone
		delete(r.all, c)
		if len(r.all) == 0 {
			r.all = nil // maps do not shrink by themselves
			r.idles.Stop()
		}
	default:
	}
}

// idle tells whether the connection carries no request, as far as net/http has
// said: one on which nothing was read yet may have its first on the way.
func (c *conn) idle() bool {
	state := http.ConnState(c.state.Load())
	return state == http.StateIdle || state == http.StateNew && c.reads.Load() == 0
}

// retire closes the connection when it is at rest: idle for long enough, with
// nothing to be read or being written.
func (c *conn) retire() {
	reads := c.reads.Load()
	still := c.still()
	if !c.idle() || still < c.restTime(reads) || c.writing.Load() || c.readable() ||
		!c.reads.CompareAndSwap(reads, reads|refused) {
		return
	}
	if c.h2.Load() && still > surelyQuiet {
		c.sayGoodbye()
	}
	_ = c.socket.Close() // its goroutine notices
}

// restTime is for how long nothing may have moved on the connection, which has
// returned that many reads, for it to be at rest.
func (c *conn) restTime(reads uint64) time.Duration {
	switch {
	case c.h2.Load() && !c.wrote.Load():
		return surelySent
	case http.ConnState(c.state.Load()) != http.StateIdle || reads != c.idleReads.Load():
		return surelyQuiet
	default:
		return quietTime
	}
}

// goaway is a frame that says: no stream above 0 was or will be processed, and
// there was no error (RFC 9113, 6.8). Those that were have ended, as the client
// has been told before; so it is about what comes from now on, which clients
// send again on another connection. It must not be said in doubt: a request
// would be served twice.
var goaway = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// sayGoodbye sends goaway if there is room for it. Nothing else is being
// written on a connection at rest.
func (c *conn) sayGoodbye() {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Write(func(fd uintptr) bool {
		_, _ = unix.Write(int(fd), goaway) // or its end tells the client less
		return true
	})
}

// look closes what is at rest and older than the last Rest: a younger one is of
// somebody who brings us back. It tells whether to look again, for what may be
// at rest by then, or has been closed and is not gone.
func (r *registry) look() (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.all {
		if c.born < r.epoch {
			again = again || c.idle()
			c.retire()
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
	if r.idles != nil {
		r.idles.Stop()
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
