// Command splice is the floor of forwarded ports: it connects each connection
// to the address that its argument names and copies both ways through a pipe
// of 1 MiB, with a thread for each direction that blocks in splice(2). It
// prints its address first.
package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is what moves in one call at most, in bytes.
const pipeSize = 1 << 20

func main() {
	target, err := netip.ParseAddrPort(os.Args[1])
	if err != nil {
		fail(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			fail(err)
		}
		// File takes a copy that blocks.
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			fail(err)
		}
		_ = c.Close()
		if err := serve(int(f.Fd()), target); err != nil {
			fail(err)
		}
		_ = f.Close()
	}
}

func serve(client int, target netip.AddrPort) error {
	server, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(server)
	if err := unix.Connect(server, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}); err != nil {
		return err
	}
	done := make(chan error)
	go func() { done <- copyAll(server, client) }()
	err = copyAll(client, server)
	if other := <-done; err == nil {
		err = other
	}
	return err
}

func copyAll(dst, src int) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if _, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		return err
	}
	for {
		n, err := unix.Splice(src, nil, pipe[1], nil, pipeSize, unix.SPLICE_F_MOVE)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			_ = unix.Shutdown(dst, unix.SHUT_WR)
			return nil // the end, one way or another
		}
		for n > 0 {
			m, err := unix.Splice(pipe[0], nil, dst, nil, int(n), unix.SPLICE_F_MOVE)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return nil
			}
			n -= m
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
