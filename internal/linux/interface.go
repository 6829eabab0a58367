package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Link is a network interface of the calling thread's network namespace.
type Link struct {
	Index    int
	Loopback bool
	// Kind is the kernel's word for what software makes the interface, such as
	// veth, bridge or tun; "" for the loopback interface and network cards.
	Kind string
}

// Links lists the network interfaces.
func Links() ([]Link, error) {
	messages, err := netlinkDump(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("netlink RTM_GETLINK: %w", err)
	}
	var links []Link
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		// struct ifinfomsg of rtnetlink(7): family, type, index, flags, change.
		l := Link{
			Index:    int(int32(binary.NativeEndian.Uint32(m.Data[4:]))),
			Loopback: binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_LOOPBACK != 0,
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, fmt.Errorf("netlink RTM_GETLINK: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_LINKINFO {
				l.Kind = nestedString(a.Value, unix.IFLA_INFO_KIND)
			}
		}
		links = append(links, l)
	}
	return links, nil
}

// DefaultRoutes lists the interfaces that default routes lead to.
func DefaultRoutes() ([]int, error) {
	var found []int
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		messages, err := netlinkDump(unix.RTM_GETROUTE, family)
		if err != nil {
			return nil, fmt.Errorf("netlink RTM_GETROUTE: %w", err)
		}
		for _, m := range messages {
			// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type.
			if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg ||
				m.Data[1] != 0 || m.Data[7] != unix.RTN_UNICAST {
				continue
			}
			attrs, err := syscall.ParseNetlinkRouteAttr(&m)
			if err != nil {
				return nil, fmt.Errorf("netlink RTM_GETROUTE: %w", err)
			}
			for _, a := range attrs {
				if a.Attr.Type == unix.RTA_OIF && len(a.Value) >= 4 {
					found = append(found, int(int32(binary.NativeEndian.Uint32(a.Value))))
				}
			}
		}
	}
	return found, nil
}

// IsLocal tells whether packets to addr stay on this machine: whether it is one
// of its own addresses. index is the interface that an IPv6 link-local address is
// on. One of IPv4 is the machine's whichever interface has it: asked for on
// another, the kernel would say that it is not.
func IsLocal(addr netip.Addr, index int) (bool, error) {
	addr = addr.Unmap()
	family, ip := byte(unix.AF_INET6), addr.AsSlice()
	if len(ip) == net4Bytes {
		family = unix.AF_INET
	}
	// struct rtmsg: family, length of destination in bits, and zeros.
	request := append([]byte{family, byte(8 * len(ip))}, make([]byte, unix.SizeofRtMsg-2)...)
	request = appendRouteAttr(request, unix.RTA_DST, ip)
	if addr.Is6() && addr.IsLinkLocalUnicast() {
		request = appendRouteAttr(request, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	}
	reply, err := netlinkAsk(unix.RTM_GETROUTE, request)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("netlink RTM_GETROUTE: %w", err)
	case len(reply) < unix.SizeofRtMsg:
		return false, fmt.Errorf("netlink RTM_GETROUTE: %d bytes: %w", len(reply), unix.EBADMSG)
	}
	return reply[7] == unix.RTN_LOCAL, nil // rtm_type
}

const net4Bytes = 4

// appendRouteAttr appends a struct rtattr (rtnetlink(7)); values are of whole
// words, so that nothing needs padding.
func appendRouteAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(b, value...)
}

// netlinkAsk sends one request and returns the body of the one message that
// answers it, which is there when the send returns.
func netlinkAsk(kind uint16, body []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// struct nlmsghdr: length, type, flags, sequence number, port.
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST)
	msg = append(append(msg, make([]byte, 8)...), body...)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	n, err := RetryInt(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		return n, err
	})
	if err != nil {
		return nil, err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return nil, unix.EBADMSG
	}
	reply := buf[unix.SizeofNlMsghdr:n]
	if binary.NativeEndian.Uint16(buf[4:]) == unix.NLMSG_ERROR {
		return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(reply)))
	}
	return reply, nil
}

func netlinkDump(request, family int) ([]syscall.NetlinkMessage, error) {
	var rib []byte
	err := Retry(func() (err error) {
		rib, err = syscall.NetlinkRIB(request, family)
		return err
	})
	if err != nil {
		return nil, err
	}
	return syscall.ParseNetlinkMessage(rib)
}

// nestedString finds a string among the attributes nested in b: each has its
// length and type in two bytes each, and is padded to four (netlink(7)).
func nestedString(b []byte, kind uint16) string {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return ""
		}
		if binary.NativeEndian.Uint16(b[2:]) == kind {
			return unix.ByteSliceToString(b[unix.SizeofRtAttr:size])
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return ""
}

// ErrNoIngress means that the kernel does not tell the interface.
var ErrNoIngress = errors.New("no ingress interface recorded")

// IngressInterface answers the index of the interface on which the connection
// behind fd, an accepted TCP socket, came in. The kernel notes it with the end
// of the handshake and hands it out among the packet options of a stream
// socket. An IPv4 peer of an IPv6 socket is asked for as IPv4. It tells nothing
// of a multipath TCP socket.
//
// A connection from this machine to an address of its own other than loopback
// seems to come in on the interface that has the address, although its packets
// do not leave the machine: see IsLocal.
func IngressInterface(fd uintptr) (int, error) {
	peer, err := unix.Getpeername(int(fd))
	if err != nil {
		return 0, fmt.Errorf("getpeername: %w", err)
	}
	o := ipv4Ingress
	if six, ok := peer.(*unix.SockaddrInet6); ok && !isMapped(six.Addr) {
		o = ipv6Ingress
	}
	// Asked for only now: a socket that asks for the information on IPv6 has
	// every packet cloned for it.
	if err := unix.SetsockoptInt(int(fd), o.level, o.want, 1); err != nil {
		return 0, fmt.Errorf("ask for packet information: %w", err)
	}
	defer func() { _ = unix.SetsockoptInt(int(fd), o.level, o.want, 0) }() // costs, but does not harm
	var buf [128]byte
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(o.level), uintptr(o.options),
		uintptr(unsafe.Pointer(&buf)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("getsockopt packet options: %w", errno)
	}
	messages, err := unix.ParseSocketControlMessage(buf[:min(size, uint32(len(buf)))])
	if err != nil {
		return 0, fmt.Errorf("packet options: %w", err)
	}
	for _, m := range messages {
		if int(m.Header.Level) == o.level && int(m.Header.Type) == o.message && len(m.Data) >= o.index+4 {
			if i := int(int32(binary.NativeEndian.Uint32(m.Data[o.index:]))); i > 0 {
				return i, nil
			}
		}
	}
	return 0, ErrNoIngress
}

// ingress is how a family tells the interface.
type ingress struct {
	level   int
	want    int // option that asks for packet information
	options int // option that has it
	message int // type of the control message
	index   int // offset of the interface's index in it
}

var (
	// struct in_pktinfo, ip(7): ifindex first. x/sys lacks IP_PKTOPTIONS.
	ipv4Ingress = ingress{unix.IPPROTO_IP, unix.IP_PKTINFO, 9, unix.IP_PKTINFO, 0}
	// struct in6_pktinfo, ipv6(7): the address first.
	ipv6Ingress = ingress{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_2292PKTOPTIONS, unix.IPV6_PKTINFO, 16}
)

// isMapped tells an IPv4 address in IPv6 form, ::ffff:0:0/96.
func isMapped(a [16]byte) bool {
	return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
}
