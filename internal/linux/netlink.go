package linux

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Netlink is a netlink socket that does not block (netlink(7)). Send and
// Receive pair up: one goroutine at a time.
type Netlink struct{ fd int }

// ErrLost is returned by Netlink.Receive when messages did not fit: into the
// socket's queue, so that events are gone, or into the buffer.
var ErrLost = errors.New("netlink messages were lost")

// OpenNetlink opens a socket of protocol and joins the multicast groups whose
// bits are set in groups. The caller closes it.
func OpenNetlink(protocol int, groups uint32) (*Netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("socket netlink %d: %w", protocol, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind netlink %d: %w", protocol, err)
	}
	return &Netlink{fd}, nil
}

// FD is the descriptor, to poll.
func (n *Netlink) FD() int { return n.fd }

// Join subscribes to the multicast group with that number, counted from 1.
func (n *Netlink) Join(group int) error {
	if err := unix.SetsockoptInt(n.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("join netlink group %d: %w", group, err)
	}
	return nil
}

// Leave ends what Join began.
func (n *Netlink) Leave(group int) error {
	if err := unix.SetsockoptInt(n.fd, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("leave netlink group %d: %w", group, err)
	}
	return nil
}

// Filter keeps back what program, a classic BPF program over a whole datagram,
// answers 0 for (socket(7), SO_ATTACH_FILTER).
func (n *Netlink) Filter(program []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.SetsockoptSockFprog(n.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("filter netlink: %w", err)
	}
	return nil
}

// Send sends a request to the kernel.
func (n *Netlink) Send(b []byte) error {
	err := Retry(func() error { return unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
	if err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	return nil
}

// Receive receives one datagram of the kernel's into buf. EAGAIN means that
// there is none, ErrLost that there was more.
func (n *Netlink) Receive(buf []byte) ([]byte, error) {
	for {
		var from unix.Sockaddr
		size, err := RetryInt(func() (size int, err error) {
			size, from, err = unix.Recvfrom(n.fd, buf, unix.MSG_TRUNC)
			return size, err
		})
		switch {
		case errors.Is(err, unix.ENOBUFS), size > len(buf):
			return nil, ErrLost
		case err != nil:
			return nil, fmt.Errorf("receive netlink message: %w", err)
		}
		// Root's processes, too, can send to the socket.
		if kernel, ok := from.(*unix.SockaddrNetlink); ok && kernel.Pid == 0 {
			return buf[:size], nil
		}
	}
}

// Close closes the socket.
func (n *Netlink) Close() error {
	if err := unix.Close(n.fd); err != nil {
		return fmt.Errorf("close netlink: %w", err)
	}
	return nil
}
