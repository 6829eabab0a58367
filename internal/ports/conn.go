package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

// dialTimeout bounds the wait for a listener on this machine whose queue is
// full.
const dialTimeout = 10 * time.Second

// A peer that has taken nothing in so many checks, 5 s, gets its reset.
const (
	settleChecks = 1000
	settlePause  = 5 * time.Millisecond
)

// counters are what Stats reports.
type counters struct {
	forwards, connections         atomic.Int64
	accepted, failed, sent, taken atomic.Uint64
}

// Stats are the numbers of a Forwarder: now, and since its start.
type Stats struct {
	Forwards, Connections int    // now
	Accepted              uint64 // connections
	Failed                uint64 // of them, those whose listener did not answer
	In, Out               uint64 // bytes to the listeners and from them
}

// Stats answers the numbers so far.
func (f *Forwarder) Stats() Stats {
	s := &f.stats
	return Stats{
		Forwards: int(s.forwards.Load()), Connections: int(s.connections.Load()),
		Accepted: s.accepted.Load(), Failed: s.failed.Load(),
		In: s.taken.Load(), Out: s.sent.Load(),
	}
}

// side is one end of a forwarded connection: an *os.File or a *net.TCPConn,
// which the runtime polls.
type side interface {
	io.Closer
	syscall.Conn
}

// conn is a forwarded connection. Its goroutines end it; close makes them.
type conn struct {
	f      *Forwarder
	client side

	// The end of that direction, to the server or to the client, was passed on
	// or is about to be.
	upEnded, downEnded atomic.Bool

	mu     sync.Mutex
	server side // guarded by mu; nil until dialled
	closed bool // guarded by mu
}

// connectLocked forwards the connection fd, which it takes over; without a
// forward it is reset.
func (f *Forwarder) connectLocked(fd int, fwd *forward) {
	c := &conn{f: f, client: os.NewFile(uintptr(fd), "forwarded connection")}
	if fwd == nil {
		c.reset()
		return
	}
	f.open[c] = struct{}{}
	f.stats.accepted.Add(1)
	f.stats.connections.Add(1)
	port, to := fwd.port, fwd.targets
	f.conns.Go(func() {
		c.run(port, to)
		f.gone(c)
	})
}

func (f *Forwarder) gone(c *conn) {
	f.stats.connections.Add(-1)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
	if f.kernel != nil && len(f.full) > 0 {
		f.resumeAcceptingLocked()
	}
	if len(f.open) == 0 {
		f.open = make(map[*conn]struct{}) // maps do not shrink by themselves
	}
}

// run connects to the listener and copies both ways until both have ended.
func (c *conn) run(port uint16, to targets) {
	server, err := dial(c.f.ctx, port, to)
	if err != nil {
		// As if the listener had been asked: refused.
		c.f.stats.failed.Add(1)
		c.reset()
		return
	}
	c.mu.Lock()
	c.server = server
	closed := c.closed
	c.mu.Unlock()
	if closed {
		_ = server.Close()
		return
	}
	var other sync.WaitGroup
	other.Go(func() { c.pump(c.client, server, &c.downEnded, &c.upEnded, &c.f.stats.sent) })
	c.pump(server, c.client, &c.upEnded, &c.downEnded, &c.f.stats.taken)
	other.Wait()
	c.close()
}

// dial connects to the first of the addresses that somebody answers on.
func dial(ctx context.Context, port uint16, to targets) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAlive.Idle, Interval: keepAlive.Interval, Count: keepAlive.Count,
	}}
	var errs []error
	for _, addr := range to {
		if !addr.IsValid() {
			continue
		}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, port).String())
		if err == nil {
			return c.(*net.TCPConn), nil // what tcp dials
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// pump copies one direction. The end of what src sends is passed on; so is a
// reset. Where dst takes no more, it is dead, and the other direction, once it
// has read what came before, finds out.
func (c *conn) pump(dst, src side, ended, backEnded *atomic.Bool, count *atomic.Uint64) {
	switch reading, err := c.f.pipes.copy(dst, src, count); {
	case err == nil && !wasReset(src, backEnded):
		ended.Store(true)
		control(dst, linux.CloseWrite)
	case reading:
		settle(dst)
		c.reset()
	}
}

// settle waits until the peer of dst has all that was sent, for as long as it
// takes some: a reset drops what is still on the way.
func settle(dst side) {
	for last, still := 0, 0; still < settleChecks; still++ {
		unsent := 0
		control(dst, func(fd uintptr) { unsent, _ = linux.Unsent(fd) })
		if unsent == 0 {
			return
		}
		if unsent != last {
			last, still = unsent, 0
		}
		time.Sleep(settlePause)
	}
}

// wasReset tells whether src, of which everything was read, was reset: the kernel
// tells an error once, and the direction back may have been the one to hear of
// it. An end in order leaves a connection open as long as that has not ended.
func wasReset(src side, backEnded *atomic.Bool) bool {
	closed := false
	control(src, func(fd uintptr) {
		state, err := linux.TCPState(fd)
		closed = err == nil && state.Closed
	})
	return closed && !backEnded.Load() // in this order: it may end right now
}

// reset closes both ends with a reset.
func (c *conn) reset() {
	control(c.client, linux.ResetOnClose)
	c.mu.Lock()
	server := c.server
	c.mu.Unlock()
	if server != nil {
		control(server, linux.ResetOnClose)
	}
	c.close()
}

// close closes both ends. Any goroutine may call it, any number of times.
func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	_ = c.client.Close()
	if c.server != nil {
		_ = c.server.Close()
	}
}

// control does something with a descriptor that is open; else nothing.
func control(s side, do func(fd uintptr)) {
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(do)
	}
}
