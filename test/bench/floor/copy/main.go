// Command copy is the floor of output: it runs the command that its arguments
// name for each connection, and copies what it writes from a pipe of 1 MiB to
// the connection, with plain reads and writes. It prints its address first.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

const (
	pipeSize = 1 << 20 // bytes
	// copySize is the size of a read and a write, in bytes.
	copySize = 64 << 10
)

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	fmt.Println(l.Addr())
	buf := make([]byte, copySize)
	for {
		conn, err := l.Accept()
		if err != nil {
			fail(err)
		}
		if err := serve(conn, buf); err != nil {
			fail(err)
		}
	}
}

func serve(conn net.Conn, buf []byte) error {
	defer conn.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	rc, err := r.SyscallConn()
	if err != nil {
		return err
	}
	if err := rc.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) }); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	// The wrappers hide splice from io.Copy.
	if _, err := io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{r}, buf); err != nil {
		return err
	}
	return cmd.Wait()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
