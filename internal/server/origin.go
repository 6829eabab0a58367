package server

import (
	"context"
	"net"
	"slices"

	"github.com/wrenn/envd/internal/linux"
)

// FromGuest tells whether the request of that context came from inside the
// guest. The connection is judged once, when somebody asks: it is the host's
// when its peer has none of this machine's addresses and it came in on the
// host's interface. Whatever cannot be told is the guest's.
//
// Both conditions are needed. A peer in a network namespace of the guest, such
// as a container's, has an address of its own and comes in on a veth or bridge.
// And for a connection to an address of its own the kernel notes the interface
// that has the address, as if it had come from outside.
func FromGuest(ctx context.Context) bool {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return true
	}
	c.judge.Do(func() { c.fromHost = c.judged() })
	return !c.fromHost
}

// judged tells whether the connection is the host's. Over vsock the context id
// tells, which nobody can choose. A unix socket is inside the guest, whoever
// uses it.
func (c *conn) judged() bool {
	switch s := c.socket.(type) {
	case *net.TCPConn:
		return fromHost(s)
	case *vsockConn:
		return s.remote.cid == linux.VsockHost
	default:
		return false
	}
}

func fromHost(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var index int
	if ctlErr := raw.Control(func(fd uintptr) { index, err = linux.IngressInterface(fd) }); ctlErr != nil || err != nil {
		return false
	}
	peer := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr() // a TCP connection's
	if local, err := linux.IsLocal(peer.WithZone(""), index); local || err != nil {
		return false
	}
	links, err := linux.Links()
	return err == nil && isHosts(index, links, linux.DefaultRoutes)
}

// isHosts tells whether the interface leads to the host: a network card, which
// no software inside the guest makes. A machine without any is a container or
// a test; there it is the interface of the default route.
func isHosts(index int, links []linux.Link, defaultRoutes func() ([]int, error)) bool {
	isCard := func(l linux.Link) bool { return !l.Loopback && l.Kind == "" }
	i := slices.IndexFunc(links, func(l linux.Link) bool { return l.Index == index })
	switch {
	case i < 0 || links[i].Loopback:
		return false
	case slices.ContainsFunc(links, isCard):
		return isCard(links[i])
	}
	routes, err := defaultRoutes()
	return err == nil && slices.Contains(routes, index)
}
