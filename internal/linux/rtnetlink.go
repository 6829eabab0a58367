package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// LinkUp brings the network interface of that index up.
func LinkUp(index int) error {
	// struct ifinfomsg: family, padding, type, index, flags, change.
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP)
	if err := routeRequest(unix.RTM_NEWLINK, 0, body); err != nil {
		return fmt.Errorf("bring interface %d up: %w", index, err)
	}
	return nil
}

// AddAddress gives the interface of that index an IPv4 address and the route
// to its network.
func AddAddress(index int, address netip.Prefix) error {
	// struct ifaddrmsg: family, prefix length, flags, scope, index.
	body := []byte{unix.AF_INET, byte(address.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	body = binary.NativeEndian.AppendUint32(body, uint32(index))
	ip := address.Addr().AsSlice()
	body = appendAttribute(body, unix.IFA_LOCAL, ip)
	body = appendAttribute(body, unix.IFA_ADDRESS, ip)
	if err := routeRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body); err != nil {
		return fmt.Errorf("add address %v to interface %d: %w", address, index, err)
	}
	return nil
}

// AddDefaultRoute sends by the IPv4 gateway what no other route takes.
func AddDefaultRoute(index int, gateway netip.Addr) error {
	// struct rtmsg: family, destination and source length, TOS, table,
	// protocol, scope, type, flags.
	body := []byte{
		unix.AF_INET, 0, 0, 0,
		unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0,
	}
	body = appendAttribute(body, unix.RTA_GATEWAY, gateway.AsSlice())
	body = appendAttribute(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	if err := routeRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body); err != nil {
		return fmt.Errorf("add default route by %v: %w", gateway, err)
	}
	return nil
}

// appendAttribute appends a struct rtattr and its padding (rtnetlink(7)).
func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// routeRequest sends one rtnetlink request and waits for its acknowledgement,
// which the kernel has ready when the send returns.
func routeRequest(kind, flags uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer unix.Close(fd)
	// struct nlmsghdr: length, type, flags, sequence number, port.
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = append(msg, make([]byte, 8)...)
	msg = append(msg, body...)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	reply := make([]byte, unix.Getpagesize())
	n, err := RetryInt(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, reply, 0)
		return n, err
	})
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	// An acknowledgement is struct nlmsgerr: a header, then a negative errno.
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return errors.New("receive: not an acknowledgement")
	}
	if errno := int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(-errno)
	}
	return nil
}
