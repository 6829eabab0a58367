package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// KeepAlive says when a silent peer of a connection counts as gone.
type KeepAlive struct {
	Idle, Interval time.Duration // whole seconds
	Count          int
}

// Listener is a listening TCP socket that does not block and is not known to
// the runtime: it costs a descriptor, and no memory of ours.
type Listener struct{ fd int }

// ListenTCP listens on addr. Accepted connections have TCP_NODELAY and alive.
// EADDRINUSE and EADDRNOTAVAIL mean what bind(2) says. The caller closes it.
func ListenTCP(addr netip.AddrPort, backlog int, alive KeepAlive) (_ *Listener, err error) {
	fd, err := bindTCP(addr)
	if err != nil {
		return nil, err
	}
	// What is set here the accepted sockets inherit.
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(alive.Idle.Seconds())),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(alive.Interval.Seconds())),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, alive.Count),
		unix.Listen(fd, backlog),
	)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on %v: %w", addr, err)
	}
	return &Listener{fd}, nil
}

// CanBindTCP tells whether this machine has the address: nil, EADDRNOTAVAIL or
// what else keeps sockets from it.
func CanBindTCP(addr netip.Addr) error {
	fd, err := bindTCP(netip.AddrPortFrom(addr, 0))
	if err != nil {
		return err
	}
	return unix.Close(fd) //nolint:wrapcheck // cannot fail
}

func bindTCP(addr netip.AddrPort) (int, error) {
	family := unix.AF_INET6
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if addr.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	// Connections of before, in TIME_WAIT, are not in the way.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, to)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind %v: %w", addr, err)
	}
	return fd, nil
}

// FD is the descriptor, to poll.
func (l *Listener) FD() int { return l.fd }

// Accept accepts a connection as a descriptor that does not block. EAGAIN means
// that there is none; a connection that has failed already is passed over.
func (l *Listener) Accept() (int, error) {
	for {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		case err != nil:
			return -1, fmt.Errorf("accept: %w", err)
		default:
			return fd, nil
		}
	}
}

// Close closes the socket. Connections that nobody has accepted are reset.
func (l *Listener) Close() error {
	if err := unix.Close(l.fd); err != nil {
		return fmt.Errorf("close listener: %w", err)
	}
	return nil
}

// CloseWrite ends what is sent on the connection behind fd.
func CloseWrite(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) } // gone already is fine

// ResetOnClose makes the close of the connection behind fd a reset (socket(7),
// SO_LINGER).
func ResetOnClose(fd uintptr) {
	_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// LocalPort is the port that the socket fd has, or was reached at.
func LocalPort(fd uintptr) (uint16, error) {
	sa, err := unix.Getsockname(int(fd))
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, fmt.Errorf("getsockname: %w", errors.Join(err, unix.EAFNOSUPPORT))
}
