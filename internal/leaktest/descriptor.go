package leaktest

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// descriptors returns the open descriptors with what they refer to.
func descriptors() (snapshot, error) {
	const dir = "/proc/self/fd/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := snapshot{}
	for _, e := range entries {
		target, err := os.Readlink(dir + e.Name())
		if err != nil {
			continue // closed since, as the one the directory was read through
		}
		id := "descriptor " + e.Name() + " → " + target
		found[id] = id + ends(e.Name())
	}
	return found, nil
}

// ends names the addresses of a socket, and nothing of other descriptors.
func ends(name string) string {
	fd, err := strconv.Atoi(name)
	if err != nil {
		return ""
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return ""
	}
	s := " " + address(local)
	if peer, err := unix.Getpeername(fd); err == nil {
		s += " connected to " + address(peer)
	}
	return s
}

func address(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		return fmt.Sprintf("unix %q", sa.Name)
	default:
		return strings.TrimPrefix(fmt.Sprintf("%T", sa), "*unix.Sockaddr")
	}
}
