package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Layouts of linux/inet_diag.h and linux/sock_diag.h. Numbers are in the
// machine's byte order, ports and addresses in the network's.
const (
	// TCPDIAG_GETSOCK is the older of two requests. It alone answers for both
	// families at once, so the kernel walks its table once.
	getSock      = 18
	socketID     = 48 // bytes of struct inet_diag_sockid
	requestSize  = unix.SizeofNlMsghdr + 4 + socketID + 8
	stateListen  = 10 // TCP_LISTEN, net/tcp_states.h
	headerSize   = unix.SizeofNlMsghdr
	messageSize  = 4 + socketID + 5*4 // struct inet_diag_msg
	attrV6Only   = 11                 // INET_DIAG_SKV6ONLY
	destroyIPv4  = 1                  // SKNLGRP_INET_TCP_DESTROY
	destroyIPv6  = 3                  // SKNLGRP_INET6_TCP_DESTROY
	offsetLocal  = headerSize + 4     // of the local port in a datagram
	offsetRemote = offsetLocal + 2    // of the remote port
)

// listenRequest asks for all listening TCP sockets.
var listenRequest = func() (b [requestSize]byte) {
	binary.NativeEndian.PutUint32(b[0:], requestSize)
	binary.NativeEndian.PutUint16(b[4:], getSock)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(b[headerSize+4+socketID:], 1<<stateListen)
	return b
}()

// unconnected lets those reports of destroyed sockets pass that can be of a
// listener: connections have a remote port, and what never was bound, such as
// after a bind that failed, has no local one.
var unconnected = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: offsetRemote},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: offsetLocal},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

var (
	errShort = errors.New("message of sock_diag is too short")
	// errInterrupted means that the table changed so much while the kernel wrote
	// it down that the answer may miss something.
	errInterrupted = errors.New("answer of sock_diag was interrupted")
)

// parseDump appends the listeners in one datagram of an answer to list, and
// tells whether it was the last one.
func parseDump(list []Listener, b []byte) (_ []Listener, last bool, err error) {
	for len(b) > 0 {
		header, body, rest, err := nextMessage(b)
		if err != nil {
			return list, false, err
		}
		b = rest
		switch {
		case header.Flags&unix.NLM_F_DUMP_INTR != 0:
			return list, false, errInterrupted
		case header.Type == unix.NLMSG_DONE:
			return list, true, dumpError(body)
		case header.Type == unix.NLMSG_ERROR:
			return list, false, dumpError(body)
		case header.Type != getSock:
			continue
		}
		l, err := parseSocket(body)
		if err != nil {
			return list, false, err
		}
		if l.Addr.Port() != 0 {
			list = append(list, l)
		}
	}
	return list, false, nil
}

// nextMessage splits the first message off b.
func nextMessage(b []byte) (h unix.NlMsghdr, body, rest []byte, err error) {
	if len(b) < headerSize {
		return h, nil, nil, errShort
	}
	h.Len = binary.NativeEndian.Uint32(b)
	h.Type = binary.NativeEndian.Uint16(b[4:])
	h.Flags = binary.NativeEndian.Uint16(b[6:])
	if h.Len < headerSize || uint64(h.Len) > uint64(len(b)) {
		return h, nil, nil, errShort
	}
	next := min(align(int(h.Len)), len(b))
	return h, b[headerSize:h.Len], b[next:], nil
}

// dumpError is the error in the end of an answer, if there is one.
func dumpError(body []byte) error {
	if len(body) < 4 {
		return nil // an end without a word is a good one
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
		return fmt.Errorf("sock_diag: %w", unix.Errno(-code))
	}
	return nil
}

// parseSocket reads one socket: struct inet_diag_msg, then attributes.
func parseSocket(b []byte) (Listener, error) {
	if len(b) < messageSize {
		return Listener{}, errShort
	}
	family, id := b[0], b[4:]
	l := Listener{
		Addr:  netip.AddrPortFrom(address(family, id[4:20]), binary.BigEndian.Uint16(id)),
		Inode: binary.NativeEndian.Uint32(b[messageSize-4:]),
	}
	for attrs := b[messageSize:]; len(attrs) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofNlAttr || size > len(attrs) {
			return Listener{}, errShort
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == attrV6Only && size > unix.SizeofNlAttr {
			l.V6Only = attrs[unix.SizeofNlAttr] != 0
		}
		attrs = attrs[min(align(size), len(attrs)):]
	}
	return l, nil
}

func address(family byte, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}

// parseDestroyed answers the local port of the socket in a report, 0 if there
// is none.
func parseDestroyed(b []byte) uint16 {
	_, body, _, err := nextMessage(b)
	if err != nil || len(body) < messageSize {
		return 0
	}
	return binary.BigEndian.Uint16(body[4:])
}

// align rounds up to what netlink pads to.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
