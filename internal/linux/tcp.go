package linux

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// TCPHealth is what the kernel knows of a connection's peer.
type TCPHealth struct {
	// Unanswered counts retransmissions and zero-window probes sent since the
	// peer last acknowledged anything; 0 when nothing is overdue.
	Unanswered int
	// LastAck is how long ago the peer acknowledged anything.
	LastAck time.Duration
	// Closed says that the connection is over: both sides have ended it, or it
	// was reset.
	Closed bool
}

const tcpClose = 7 // TCP_CLOSE, net/tcp_states.h

// TCPState asks the kernel about the connection behind fd (tcp(7), TCP_INFO).
// A live peer that does not read answers every probe: only a peer that is gone
// leaves them unanswered.
func TCPState(fd uintptr) (TCPHealth, error) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return TCPHealth{}, fmt.Errorf("getsockopt TCP_INFO: %w", err)
	}
	return TCPHealth{
		Unanswered: int(info.Retransmits) + int(info.Probes),
		LastAck:    time.Duration(info.Last_ack_recv) * time.Millisecond,
		Closed:     info.State == tcpClose,
	}, nil
}

// CorkTCP makes the connection behind fd hold incomplete segments back, for 200
// ms at most, or send them. It is a hint: that it failed does not matter.
func CorkTCP(fd uintptr, on bool) {
	v := 0
	if on {
		v = 1
	}
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, v)
}

// Unsent reports how many bytes of a connection its peer has not acknowledged
// (tcp(7), SIOCOUTQ).
func Unsent(fd uintptr) (int, error) {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
	if err != nil {
		return 0, fmt.Errorf("ioctl SIOCOUTQ: %w", err)
	}
	return n, nil
}
