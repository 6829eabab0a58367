package ports

import (
	"net/netip"
	"slices"
)

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// Listener is a listening TCP socket.
type Listener struct {
	// Addr is what it is bound to; an IPv4 address also where it is mapped into
	// IPv6.
	Addr netip.AddrPort
	// V6Only says that a socket on :: takes no IPv4 connections.
	V6Only bool
	// Inode names the socket in /proc/PID/fd.
	Inode uint32
}

// accepts tells whether connections to addr reach l by themselves.
func (l Listener) accepts(addr netip.Addr) bool {
	own := l.Addr.Addr()
	switch {
	case own == addr:
		return true
	case !own.IsUnspecified():
		return false
	default:
		return own.Is4() == addr.Is4() || own.Is6() && !l.V6Only
	}
}

// via is the loopback address that reaches l, if one does. The rest of
// 127.0.0.0/8 does not count: who listens there, such as a resolver on
// 127.0.0.53, means to be apart.
func (l Listener) via() (addr netip.Addr, ok bool) {
	switch own := l.Addr.Addr(); {
	case own == loopback4, own == loopback6:
		return own, true
	case own == netip.IPv4Unspecified():
		return loopback4, true
	case own == netip.IPv6Unspecified():
		return loopback6, true
	default:
		return netip.Addr{}, false
	}
}

// targets are the addresses that a forward dials, in order: IPv4 first, the
// zero Addr for none.
type targets [2]netip.Addr

func (t *targets) add(addr netip.Addr) {
	if addr.Is4() {
		t[0] = addr
	} else {
		t[1] = addr
	}
}

// wanted answers which ports are to be forwarded to addr, and where from. A
// listener on addr at a port in held is our own forward.
func wanted(listeners []Listener, addr netip.Addr, own uint16, held func(port uint16) bool) map[uint16]targets {
	want := make(map[uint16]targets)
	for _, l := range listeners {
		if via, ok := l.via(); ok && l.Addr.Port() != own {
			t := want[l.Addr.Port()]
			t.add(via)
			want[l.Addr.Port()] = t
		}
	}
	for _, l := range listeners {
		ours := l.Addr.Addr() == addr && held(l.Addr.Port())
		if l.accepts(addr) && !ours {
			delete(want, l.Addr.Port())
		}
	}
	return want
}

// compare orders listeners by port, then by address.
func compare(a, b netip.AddrPort) int {
	if a.Port() != b.Port() {
		return int(a.Port()) - int(b.Port())
	}
	return a.Addr().Compare(b.Addr())
}

// sorted returns one of each address and port, in order: several sockets share
// one by SO_REUSEPORT.
func sorted(listeners []Listener) []Listener {
	list := slices.Clone(listeners)
	slices.SortStableFunc(list, func(a, b Listener) int { return compare(a.Addr, b.Addr) })
	return slices.CompactFunc(list, func(a, b Listener) bool { return a.Addr == b.Addr })
}
