package ports

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// backlog of connections that wait to be accepted; the kernel's own bound,
	// net.core.somaxconn, is 4096 by default.
	backlog = 4096
	// maxForwards bounds the ports forwarded at a time, and fileShare the part
	// of the process's descriptors for them: the rest is for commands.
	maxForwards = 8192
	fileShare   = 4
	// maxConnections bounds the forwarded connections. Each takes two
	// descriptors, and four more while data is under way.
	maxConnections = 2048
	// acceptBatch bounds what one port may accept before others have a turn.
	acceptBatch = 64
)

// keepAlive finds connections whose peer is gone: after 60 s.
var keepAlive = linux.KeepAlive{Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// forward is a port that is listened on for somebody else.
type forward struct {
	id       int32
	port     uint16
	listener *linux.Listener // nil where connections are steered
	targets  targets
}

// door is the one listening socket that connections to all forwarded ports are
// steered to, where the kernel can do that.
type door struct {
	listener *linux.Listener
	port     uint16 // its own, at which nothing is forwarded
	steering *linux.Steering
}

// openDoor makes a door on addr.
func openDoor(addr netip.Addr) (_ *door, err error) {
	d := &door{}
	if d.listener, err = linux.ListenTCP(netip.AddrPortFrom(addr, 0), backlog, keepAlive); err != nil {
		return nil, err
	}
	if d.port, err = linux.LocalPort(uintptr(d.listener.FD())); err == nil {
		d.steering, err = linux.OpenSteering(addr, d.listener.FD())
	}
	if err != nil {
		_ = d.listener.Close()
		return nil, err
	}
	return d, nil
}

func (d *door) close() {
	d.steering.Close()
	_ = d.listener.Close()
}

// knockLocked makes the door, once. Without one, forwards are bound.
func (f *Forwarder) knockLocked() {
	if f.knocked || f.cfg.bound {
		return
	}
	f.knocked = true
	d, err := openDoor(f.cfg.Address)
	if err == nil {
		if err = f.epoll.Add(d.listener.FD(), doorID); err != nil {
			d.close()
		}
	}
	if err != nil {
		f.cfg.Log.Debug("forwarded ports are bound", "reason", err)
		return
	}
	f.door = d
}

// oursLocked tells whether we listen on the forward address at that port.
func (f *Forwarder) oursLocked(port uint16) bool {
	fwd := f.forwards[port]
	return fwd != nil && fwd.listener != nil || f.door != nil && f.door.port == port
}

// forwardLimit is how many forwards there may be that are bound.
func forwardLimit() int {
	return min(maxForwards, linux.FileLimit()/fileShare)
}

// forwardLocked opens and closes forwards until they are what is wanted.
func (f *Forwarder) forwardLocked(want map[uint16]targets) {
	for port, fwd := range f.forwards {
		to, ok := want[port]
		if !ok {
			f.closeLocked(fwd)
			continue
		}
		fwd.targets = to
	}
	f.retryAt = time.Time{}
	for port, to := range want {
		if f.forwards[port] != nil {
			continue
		}
		if err := f.openLocked(port, to); err != nil {
			f.retryAt = time.Now().Add(retryPause)
			f.cfg.Log.Debug("port is not forwarded", "port", port, "error", err)
		}
	}
	if len(f.forwards) == 0 {
		_ = f.kernel.watch(false) // at worst, needless reports
	}
}

var errTooMany = errors.New("too many forwarded ports")

func (f *Forwarder) openLocked(port uint16, to targets) error {
	if len(f.forwards) >= f.most {
		return errTooMany
	}
	f.knockLocked()
	fwd := &forward{port: port, targets: to}
	if err := f.admitLocked(fwd); err != nil {
		return err
	}
	f.forwards[port] = fwd
	f.stats.forwards.Add(1)
	f.cfg.Log.Debug("port is forwarded", "port", port)
	return nil
}

// admitLocked lets connections to a port in: by the door, or by a socket of its
// own.
func (f *Forwarder) admitLocked(fwd *forward) (err error) {
	if f.door != nil {
		return f.door.steering.Add(fwd.port)
	}
	fwd.listener, err = linux.ListenTCP(netip.AddrPortFrom(f.cfg.Address, fwd.port), backlog, keepAlive)
	if err != nil {
		return err
	}
	for used := true; used; {
		// Numbers go round one day.
		f.lastID = max(lastFixedID, f.lastID+1)
		_, used = f.byID[f.lastID]
	}
	fwd.id = f.lastID
	if err := f.epoll.Add(fwd.listener.FD(), fwd.id); err != nil {
		_ = fwd.listener.Close()
		return err
	}
	f.byID[fwd.id] = fwd
	return nil
}

func (f *Forwarder) closeLocked(fwd *forward) {
	delete(f.forwards, fwd.port)
	delete(f.byID, fwd.id)
	if fwd.listener != nil {
		_ = fwd.listener.Close()
	} else if err := f.door.steering.Remove(fwd.port); err != nil {
		f.cfg.Log.Error("port may still be forwarded", "port", fwd.port, "error", err)
	}
	f.stats.forwards.Add(-1)
	f.cfg.Log.Debug("port is not forwarded any more", "port", fwd.port)
	if len(f.forwards) == 0 { // maps do not shrink by themselves
		f.forwards, f.byID = make(map[uint16]*forward), make(map[int32]*forward)
	}
}

func (f *Forwarder) closeForwardsLocked() {
	if len(f.forwards) == 0 {
		return
	}
	for _, fwd := range f.forwards {
		f.closeLocked(fwd)
	}
	f.forgetLocked()
	_ = f.kernel.watch(false) // at worst, needless reports
	f.notifyLocked()
}

// acceptLocked takes the connections at a forward's socket, or at the door.
func (f *Forwarder) acceptLocked(id int32) {
	l := f.listenerLocked(id)
	if l == nil {
		return // closed meanwhile
	}
	for range acceptBatch {
		if len(f.open) >= maxConnections {
			f.full = append(f.full, id)
			return
		}
		fd, err := l.Accept()
		switch {
		case errors.Is(err, unix.EAGAIN):
			f.armLocked(l.FD(), id)
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			// Tried again when a connection has ended, or at the next look.
			f.full = append(f.full, id)
			return
		case err != nil: // of that connection, accept(2)
			continue
		}
		f.connectLocked(fd, f.behindLocked(id, fd))
	}
	f.armLocked(l.FD(), id)
}

func (f *Forwarder) listenerLocked(id int32) *linux.Listener {
	if id == doorID && f.door != nil {
		return f.door.listener
	}
	if fwd := f.byID[id]; fwd != nil {
		return fwd.listener
	}
	return nil
}

// behindLocked is the forward of an accepted connection: nil when somebody came
// to the door itself. One that ended since the connection was steered still
// counts: its listener may have moved to all addresses.
func (f *Forwarder) behindLocked(id int32, fd int) *forward {
	if id != doorID {
		return f.byID[id]
	}
	port, err := linux.LocalPort(uintptr(fd))
	if err != nil || port == f.door.port {
		return nil
	}
	if fwd := f.forwards[port]; fwd != nil {
		return fwd
	}
	return &forward{port: port, targets: targets{loopback4, loopback6}}
}

// resumeAcceptingLocked lets those go on that could not accept.
func (f *Forwarder) resumeAcceptingLocked() {
	for _, id := range f.full {
		if l := f.listenerLocked(id); l != nil {
			f.armLocked(l.FD(), id)
		}
	}
	f.full = f.full[:0]
}
