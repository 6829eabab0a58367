package server

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

const (
	// fastCheck takes the place of deadCheck: long beside the time a live peer
	// takes to answer a probe, even one that it leaves out.
	fastCheck = 500 * time.Millisecond

	serverIP, clientIP = "10.203.77.1", "10.203.77.2"
)

// accepted answers both ends of a connection, the daemon's watched.
func accepted(t *testing.T, listen string, dial func(addr string) (net.Conn, error)) (ours *conn, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	theirs, err = dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	c, err := watched{l, fastCheck, new(atomic.Uint64)}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*conn), theirs
}

// flood writes until it fails, and answers how long that took.
func flood(c net.Conn) <-chan time.Duration {
	over := make(chan time.Duration, 1)
	go func() {
		began := time.Now()
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				over <- time.Since(began)
				return
			}
		}
	}()
	return over
}

// TestLivePeerMayNotRead checks that a peer which does not read, but is there,
// is never taken for dead: its kernel answers the probes of its closed window.
func TestLivePeerMayNotRead(t *testing.T) {
	leaktest.Check(t)
	ours, theirs := accepted(t, "127.0.0.1:0", func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) })
	const size = 32 << 20 // more than the kernel takes over
	written := make(chan error, 1)
	go func() {
		_, err := ours.Write(make([]byte, size))
		written <- err
	}()
	select {
	case err := <-written:
		t.Fatalf("the write ended without a reader: %v", err)
	case <-time.After(2 * (deadStrikes + 1) * fastCheck):
	}
	if n, err := io.CopyN(io.Discard, theirs, size); err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// TestDeadPeer checks that a blocked write ends when the peer's machine is no
// longer there. It runs in a network namespace of its own, with the peer in
// another one.
func TestDeadPeer(t *testing.T) {
	const inside = "SERVER_TEST_NETNS"
	if os.Getenv(inside) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDeadPeer$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	peer := exec.CommandContext(t.Context(), "sleep", "1000") // holds the other namespace
	peer.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Process.Kill(); _ = peer.Wait() }()
	netns := "/proc/" + strconv.Itoa(peer.Process.Pid) + "/ns/net"
	for _, args := range []string{
		"ip link set lo up",
		fmt.Sprintf("ip link add here type veth peer name there netns %d", peer.Process.Pid),
		"ip addr add " + serverIP + "/30 dev here",
		"ip link set here up",
		"nsenter --net=" + netns + " ip addr add " + clientIP + "/30 dev there",
		"nsenter --net=" + netns + " ip link set there up",
	} {
		f := strings.Fields(args)
		if out, err := exec.CommandContext(t.Context(), f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args, err, out)
		}
	}
	ours, _ := accepted(t, serverIP+":0", func(addr string) (net.Conn, error) { return dialFrom(netns, addr) })
	over := flood(ours)
	select {
	case took := <-over:
		t.Fatalf("the write failed after %v with a live peer", took)
	case <-time.After(fastCheck): // it is blocked by now
	}
	// The machine is gone, and nobody says so.
	if out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+netns, "ip", "link", "set", "there", "down").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	began := time.Now()
	select {
	case <-over:
		t.Logf("the write ended %v after the peer", time.Since(began).Round(time.Millisecond))
	case <-time.After(limit):
		t.Fatal("the write goes on without a peer")
	}
}

// dialFrom connects from another network namespace.
func dialFrom(netns, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := os.Open(netns)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := net.DialTimeout("tcp", addr, limit)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
