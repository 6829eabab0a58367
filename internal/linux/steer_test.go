package linux

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSteering reaches one listener at ports of its address that nobody has
// bound, and that others may bind.
func TestSteering(t *testing.T) {
	for _, addr := range []string{"127.0.0.77", "::1"} {
		t.Run(addr, func(t *testing.T) {
			addr := netip.MustParseAddr(addr)
			l, err := ListenTCP(netip.AddrPortFrom(addr, 0), 8, KeepAlive{time.Minute, time.Second, 2})
			must(t, err)
			defer l.Close()
			s, err := OpenSteering(addr, l.FD())
			must(t, err)
			defer s.Close()
			for _, fd := range []int{s.ports, s.sockets, s.program, s.link} {
				if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Error("a child would inherit a descriptor")
				}
			}
			// A port that is bound, so that nobody else has it.
			own, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
			must(t, err)
			at := own.Addr().(*net.TCPAddr).AddrPort()
			must(t, own.Close())
			refused := func() {
				t.Helper()
				if c, err := net.Dial("tcp", at.String()); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("connected to %v: %v, %v", at, c, err)
				}
			}
			refused()
			must(t, s.Add(at.Port()))
			c, err := net.Dial("tcp", at.String())
			must(t, err)
			defer c.Close()
			fd, err := l.Accept()
			must(t, err)
			f := os.NewFile(uintptr(fd), "accepted")
			defer f.Close()
			if port, err := LocalPort(uintptr(fd)); port != at.Port() || err != nil {
				t.Errorf("accepted at port %d, %v; want %d", port, err, at.Port())
			}
			own, err = net.Listen("tcp", at.String())
			if err != nil {
				t.Errorf("the port is taken: %v", err)
			} else {
				must(t, own.Close())
			}
			must(t, s.Remove(at.Port()))
			must(t, s.Remove(at.Port()))
			refused()
		})
	}
}
