package linux

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ready waits for input on fd, for limit at most.
func ready(t *testing.T, fd int, limit time.Duration) bool {
	t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	must(t, err)
	return n > 0
}

func TestTimer(t *testing.T) {
	timer, err := OpenTimer()
	must(t, err)
	defer timer.Close()
	if ready(t, timer.FD(), 0) {
		t.Error("has run down before it was set")
	}
	must(t, timer.Set(0))
	if !ready(t, timer.FD(), patience) {
		t.Error("has not run down at once")
	}
	must(t, timer.Set(time.Hour))
	if ready(t, timer.FD(), 0) {
		t.Error("has run down although it was set again")
	}
	must(t, timer.Set(time.Millisecond))
	must(t, timer.Set(-1))
	if ready(t, timer.FD(), 20*time.Millisecond) {
		t.Error("has run down although it was stopped")
	}
}

func TestListenTCP(t *testing.T) {
	addr := netip.MustParseAddr("127.0.0.1")
	must(t, CanBindTCP(addr))
	if err := CanBindTCP(netip.MustParseAddr("192.0.2.77")); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address that is not here: %v", err)
	}
	l, err := ListenTCP(netip.AddrPortFrom(addr, 0), 8, KeepAlive{time.Minute, time.Second, 2})
	must(t, err)
	defer l.Close()
	sa, err := unix.Getsockname(l.FD())
	must(t, err)
	at := netip.AddrPortFrom(addr, uint16(sa.(*unix.SockaddrInet4).Port))
	if _, err := ListenTCP(at, 8, KeepAlive{time.Minute, time.Second, 2}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("the same port again: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nobody there: %v", err)
	}
	c, err := net.Dial("tcp", at.String())
	must(t, err)
	defer c.Close()
	fd, err := l.Accept()
	must(t, err)
	f := os.NewFile(uintptr(fd), "accepted")
	wantCloseOnExec(t, f)
	if !nonblocking(t, f) {
		t.Error("blocks")
	}
	for opt, want := range map[int]int{unix.TCP_NODELAY: 1, unix.TCP_KEEPIDLE: 60, unix.TCP_KEEPINTVL: 1, unix.TCP_KEEPCNT: 2} {
		if got, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, opt); err != nil || got != want {
			t.Errorf("option %d is %d, %v", opt, got, err)
		}
	}
	ResetOnClose(uintptr(fd))
	must(t, f.Close())
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestSplicePipe(t *testing.T) {
	pipe, err := OpenSplicePipe(1 << 16)
	must(t, err)
	defer pipe.Close()
	var from, to [2]int
	for _, p := range []*[2]int{&from, &to} {
		*p, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(p[1])
	}
	out := os.NewFile(uintptr(to[0]), "out")
	defer out.Close()
	if _, err := pipe.Fill(uintptr(from[1])); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing there: %v", err)
	}
	_, err = unix.Write(from[0], []byte("moved"))
	must(t, err)
	n, err := pipe.Fill(uintptr(from[1]))
	if n != 5 || err != nil {
		t.Fatalf("filled %d, %v", n, err)
	}
	if n, err := pipe.Drain(uintptr(to[1]), n); n != 5 || err != nil {
		t.Fatalf("drained %d, %v", n, err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(out, buf); err != nil || string(buf) != "moved" {
		t.Errorf("got %q, %v", buf, err)
	}
	must(t, unix.Close(from[0]))
	if n, err := pipe.Fill(uintptr(from[1])); n != 0 || err != nil {
		t.Errorf("end: %d, %v", n, err)
	}
}

func TestNetlink(t *testing.T) {
	const events = 1 // SKNLGRP_INET_TCP_DESTROY
	n, err := OpenNetlink(unix.NETLINK_SOCK_DIAG, 0)
	must(t, err)
	defer n.Close()
	buf := make([]byte, 1<<12)
	if _, err := n.Receive(buf); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing there: %v", err)
	}
	report := func() {
		t.Helper()
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		must(t, l.Close())
	}
	must(t, n.Join(events))
	report()
	if !ready(t, n.FD(), patience) {
		t.Fatal("no report")
	}
	b, err := n.Receive(buf)
	if err != nil || len(b) == 0 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	report()
	if !ready(t, n.FD(), patience) {
		t.Fatal("no report")
	}
	if _, err := n.Receive(buf[:8]); !errors.Is(err, ErrLost) {
		t.Errorf("into a short buffer: %v", err)
	}
	must(t, n.Leave(events))
	must(t, n.Filter([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}})) // nothing passes
	must(t, n.Join(events))
	for { // what came before
		if _, err := n.Receive(buf); errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	report()
	if ready(t, n.FD(), 20*time.Millisecond) {
		t.Error("passed the filter")
	}
}
