package server

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// deadCheck is how often a blocked write asks whether the peer lives.
	deadCheck = 10 * time.Second
	// deadStrikes is how many checks in a row must find the peer silent.
	deadStrikes = 3
	// deadProbes is how many retransmissions or probes in a row must be
	// unanswered for the peer to be silent. One may be lost, and live peers
	// leave one out themselves (tcp_invalid_ratelimit), while the next comes
	// up to two minutes later (TCP_RTO_MAX).
	deadProbes = 2
	// crowdedIdle is for how long a connection may be idle once all places are
	// taken, and crowdedPause lies between two looks.
	crowdedIdle  = 10 * time.Second
	crowdedPause = 250 * time.Millisecond
)

// bounded leaves some of the process's descriptors for what is not a connection:
// without, idle clients could keep the daemon from killing a command, which
// takes one. Who comes when all places are taken waits in the kernel until a
// connection ends; those that are idle for a while then do.
type bounded struct {
	net.Listener
	conns  *registry
	closed chan struct{}
	end    func() // closes it
}

// bound makes a listener bounded.
func bound(l net.Listener, conns *registry) bounded {
	closed := make(chan struct{})
	return bounded{l, conns, closed, sync.OnceFunc(func() { close(closed) })}
}

// Close ends an Accept that waits for a place, too: net/http waits for it
// before it ends any connection.
func (l bounded) Close() error {
	l.end()
	return l.Listener.Close() //nolint:wrapcheck // net/http looks at it
}

func (l bounded) Accept() (net.Conn, error) {
	if !l.enter() {
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.conns.places
	}
	return c, err //nolint:wrapcheck // net/http looks at it
}

// enter takes a place, unless the listener is closed first.
func (l bounded) enter() bool {
	select {
	case l.conns.places <- struct{}{}:
		return true
	default:
	}
	for {
		l.conns.closeIdle(l.conns.crowded)
		select {
		case l.conns.places <- struct{}{}:
			return true
		case <-l.closed:
			return false
		case <-time.After(crowdedPause):
		}
	}
}

// watched makes connections that notice when their peer is gone.
type watched struct {
	net.Listener
	every time.Duration // deadCheck, but in tests
	sent  *atomic.Uint64
}

func (l watched) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &conn{socket: c.(socket), every: l.every, sent: l.sent} // all that we listen on accept such
	w.timer = time.AfterFunc(w.every, w.check)
	w.timer.Stop()
	return w, nil
}

// socket is what connections over TCP, unix sockets and vsock have in common.
type socket interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// conn is a connection that is closed when a write is blocked and the peer no
// longer answers the kernel's retransmissions and probes. A peer that merely
// does not read answers them and may take for ever; keep-alive covers a
// connection on which nothing is under way. Only TCP has peers that can go
// without a word.
type conn struct {
	socket
	every   time.Duration  // between two checks
	sent    *atomic.Uint64 // bytes, of all connections
	writing atomic.Bool
	armed   atomic.Bool // the timer runs
	timer   *time.Timer // runs check while writing
	strikes int         // check's own; it does not overlap itself

	judge    sync.Once // of FromGuest
	fromHost bool      // set by judge

	answering atomic.Bool // see answering

	body goneWatch
	life
}

// Cork makes the connection of the request with that context hold incomplete
// segments back, or send them (tcp(7), TCP_CORK). It is for the handler of a
// request over HTTP/1.1.
func Cork(ctx context.Context, on bool) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { linux.CorkTCP(fd, on) }) // closed: nothing to hold
	}
}

func (c *conn) Write(p []byte) (int, error) {
	defer c.watch()()
	if !c.answering.Load() {
		if r := refusal(p); r != nil {
			// net/http may read the rest of a body all the same.
			_ = c.SetReadDeadline(time.Now().Add(c.registry.unread)) // closed already
			_, err := c.socket.Write(r)
			return len(p), err
		}
	}
	n, err := c.socket.Write(p)
	c.sent.Add(uint64(n))
	return n, err
}

// ReadFrom lets the kernel copy from files (sendfile, splice).
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	defer c.watch()()
	var n int64
	var err error
	if tcp, ok := c.socket.(io.ReaderFrom); ok {
		n, err = tcp.ReadFrom(r)
	} else {
		n, err = io.Copy(struct{ io.Writer }{c.socket}, r)
	}
	c.sent.Add(uint64(n))
	return n, err
}

// abort closes the connection and has the kernel forget what it was to send:
// nobody is there to take it.
func (c *conn) abort() {
	if tcp, ok := c.socket.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // closed already
	}
	_ = c.socket.Close()
}

// watch runs check from time to time until the returned function is called.
// Writes do not overlap: net/http serialises them. The timer is left to run out
// after a write: to set and stop it for each would wake another thread.
func (c *conn) watch() (stop func()) {
	c.writing.Store(true)
	c.arm()
	return c.unwatch
}

func (c *conn) unwatch() {
	c.wrote.Store(true)
	c.writing.Store(false)
}

func (c *conn) arm() {
	if c.armed.CompareAndSwap(false, true) {
		c.timer.Reset(c.every)
	}
}

// check counts the checks in a row between which nothing was acknowledged
// although something is overdue. A probe of a live peer is answered long
// before the next check.
func (c *conn) check() {
	if !c.writing.Load() {
		c.strikes = 0
		c.armed.Store(false)
		if c.writing.Load() { // it began between the two
			c.arm()
		}
		return
	}
	health, err := c.health()
	switch {
	case err != nil || health.Unanswered < deadProbes:
		c.strikes = 0
	case health.LastAck >= time.Duration(c.strikes)*c.every:
		c.strikes++
	default:
		c.strikes = 1
	}
	if c.strikes > deadStrikes {
		c.abort()
		return
	}
	c.timer.Reset(c.every)
}

func (c *conn) health() (h linux.TCPHealth, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return h, err
	}
	if ctlErr := raw.Control(func(fd uintptr) { h, err = linux.TCPState(fd) }); ctlErr != nil {
		return h, ctlErr
	}
	return h, err
}
