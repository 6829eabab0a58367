package ports

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// Port is a port that a program listens on.
type Port struct {
	Addr netip.AddrPort
	// Forwarded says that it is reachable on the forward address through us.
	Forwarded bool
	// PID and Command are of the oldest process that has the socket; 0 and ""
	// where none was found.
	PID     int
	Command string

	inode uint32
}

// Address is where loopback ports are reachable; the zero Addr for nowhere at
// present.
func (f *Forwarder) Address() netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.present || f.quiesced {
		return netip.Addr{}
	}
	return f.cfg.Address
}

// List asks for the ports of this moment, in order; the daemon's own and the
// forwards are left out.
func (f *Forwarder) List() ([]Port, error) {
	f.mu.Lock()
	if f.kernel == nil {
		f.mu.Unlock()
		return nil, ErrClosed
	}
	list, _, err := f.kernel.listeners(nil)
	ports := f.portsLocked(f.othersLocked(sorted(list)))
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	findOwners(ports)
	return ports, nil
}

// othersLocked takes the daemon's own port and the forwards out of list.
func (f *Forwarder) othersLocked(list []Listener) []Listener {
	return slices.DeleteFunc(list, func(l Listener) bool {
		port := l.Addr.Port()
		return port == f.cfg.Own || l.Addr.Addr() == f.cfg.Address && f.oursLocked(port)
	})
}

// portsLocked are the ports behind listeners, without their owners.
func (f *Forwarder) portsLocked(listeners []Listener) []Port {
	ports := make([]Port, 0, len(listeners))
	for _, l := range listeners {
		fwd := f.forwards[l.Addr.Port()]
		via, _ := l.via()
		forwarded := fwd != nil && via.IsValid() && slices.Contains(fwd.targets[:], via)
		ports = append(ports, Port{Addr: l.Addr, Forwarded: forwarded, inode: l.Inode})
	}
	return ports
}

// Event is a change of one port.
type Event struct {
	// Opened: somebody listens there now, or Forwarded has changed. Else nobody
	// does any more.
	Opened bool
	Port   Port
}

// eventPause is the least time between two answers of Watch.Next, so that a
// program that opens and closes ports all the time does not keep us busy.
const eventPause = 100 * time.Millisecond

// Watch follows the ports. It holds what its reader knows, not what happened:
// a slow reader gets fewer events. It is for one goroutine.
type Watch struct {
	f     *Forwarder
	known []Port
	last  time.Time // when Next last answered
}

// Watch begins to follow: the first events open the ports there are. Its
// caller ends it with Close.
func (f *Forwarder) Watch() (*Watch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kernel == nil {
		return nil, ErrClosed
	}
	f.watches++
	if f.watches == 1 {
		f.lookLocked() // often, from now on
	}
	return &Watch{f: f}, nil
}

// Close ends the watch.
func (w *Watch) Close() {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	w.f.watches--
}

// Next waits for changes and answers them, those of one port in order. It
// returns ErrClosed after the forwarder's Close.
func (w *Watch) Next(ctx context.Context) ([]Event, error) {
	if err := sleep(ctx, eventPause-time.Since(w.last)); err != nil {
		return nil, err
	}
	for {
		w.f.mu.Lock()
		closed, changed := w.f.kernel == nil, w.f.changed
		now := w.f.portsLocked(w.f.listeners)
		w.f.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		if events := diff(w.known, now); len(events) > 0 {
			w.known, w.last = now, time.Now()
			describe(events)
			return events, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// diff is what leads from old to now, both in order.
func diff(old, now []Port) (events []Event) {
	for len(old) > 0 || len(now) > 0 {
		var order int
		switch {
		case len(now) == 0:
			order = -1
		case len(old) == 0:
			order = 1
		default:
			order = compare(old[0].Addr, now[0].Addr)
		}
		if order == 0 && old[0] == now[0] {
			old, now = old[1:], now[1:]
			continue
		}
		again := order == 0 && old[0].inode == now[0].inode // only forwarded or not
		if order <= 0 {
			if !again {
				events = append(events, Event{Port: old[0]})
			}
			old = old[1:]
		}
		if order >= 0 {
			events = append(events, Event{Opened: true, Port: now[0]})
			now = now[1:]
		}
	}
	return events
}

// describe finds the owners of opened ports.
func describe(events []Event) {
	var ports []Port
	for _, e := range events {
		if e.Opened {
			ports = append(ports, e.Port)
		}
	}
	findOwners(ports)
	for i := range events {
		if events[i].Opened {
			events[i].Port, ports = ports[0], ports[1:]
		}
	}
}

// notifyLocked wakes the watches.
func (f *Forwarder) notifyLocked() {
	if f.watches > 0 {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}
