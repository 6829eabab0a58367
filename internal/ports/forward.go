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
	listener *linux.Listener
	targets  targets
}

// forwardLimit is how many forwards there may be.
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
	l, err := linux.ListenTCP(netip.AddrPortFrom(f.cfg.Address, port), backlog, keepAlive)
	if err != nil {
		return err
	}
	for used := true; used; {
		// Numbers go round one day.
		f.lastID = max(lastFixedID, f.lastID+1)
		_, used = f.byID[f.lastID]
	}
	fwd := &forward{id: f.lastID, port: port, listener: l, targets: to}
	if err := f.epoll.Add(l.FD(), fwd.id); err != nil {
		_ = l.Close()
		return err
	}
	f.forwards[port], f.byID[fwd.id] = fwd, fwd
	f.stats.forwards.Add(1)
	f.cfg.Log.Debug("port is forwarded", "port", port)
	return nil
}

func (f *Forwarder) closeLocked(fwd *forward) {
	delete(f.forwards, fwd.port)
	delete(f.byID, fwd.id)
	_ = fwd.listener.Close()
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
	f.full = nil
	_ = f.kernel.watch(false) // at worst, needless reports
	f.notifyLocked()
}

// acceptLocked takes connections of a port that has some.
func (f *Forwarder) acceptLocked(fwd *forward) {
	for range acceptBatch {
		if len(f.open) >= maxConnections {
			f.full = append(f.full, fwd)
			return
		}
		fd, err := fwd.listener.Accept()
		switch {
		case errors.Is(err, unix.EAGAIN):
			f.armLocked(fwd.listener.FD(), fwd.id)
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			// Tried again when a connection has ended, or at the next look.
			f.full = append(f.full, fwd)
			return
		case err != nil: // of that connection, accept(2)
			continue
		}
		f.connectLocked(fd, fwd)
	}
	f.armLocked(fwd.listener.FD(), fwd.id)
}

// resumeAcceptingLocked lets the forwards go on that could not accept.
func (f *Forwarder) resumeAcceptingLocked() {
	for _, fwd := range f.full {
		if f.byID[fwd.id] == fwd {
			f.armLocked(fwd.listener.FD(), fwd.id)
		}
	}
	f.full = f.full[:0]
}
