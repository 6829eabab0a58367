package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// vsockAddr is the address of one end. Package net has no vsock.
type vsockAddr struct{ cid, port uint32 }

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return fmt.Sprintf("%d:%d", a.cid, a.port) }

// vsockListener listens on a vsock port. The file has the descriptor in the
// runtime's poller.
type vsockListener struct {
	file *os.File
	addr vsockAddr
}

// ListenVsock listens on a vsock port. New takes the listener over.
func ListenVsock(port uint32) (net.Listener, error) {
	fd, err := linux.ListenVsock(port)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return &vsockListener{os.NewFile(uintptr(fd), "vsock"), vsockAddr{unix.VMADDR_CID_ANY, port}}, nil
}

// Accept implements net.Listener.
func (l *vsockListener) Accept() (net.Conn, error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, vsockError("accept", err)
	}
	var from vsockAddr
	var fd int
	var acceptErr error
	err = raw.Read(func(listener uintptr) bool {
		fd, from.cid, from.port, acceptErr = linux.AcceptVsock(int(listener))
		return !errors.Is(acceptErr, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return nil, vsockError("accept", net.ErrClosed)
	case acceptErr != nil:
		return nil, vsockError("accept", os.NewSyscallError("accept4", acceptErr))
	}
	return &vsockConn{os.NewFile(uintptr(fd), "vsock"), l.addr, from}, nil
}

// Close implements net.Listener.
func (l *vsockListener) Close() error { return vsockError("close", l.file.Close()) }

// Addr implements net.Listener.
func (l *vsockListener) Addr() net.Addr { return l.addr }

// vsockConn is a connection over vsock.
type vsockConn struct {
	file          *os.File
	local, remote vsockAddr
}

func (c *vsockConn) Read(p []byte) (int, error) {
	n, err := c.file.Read(p)
	return n, vsockError("read", err)
}

func (c *vsockConn) Write(p []byte) (int, error) {
	n, err := c.file.Write(p)
	return n, vsockError("write", err)
}

// CloseWrite ends our half; net/http does before it closes a connection whose
// peer may still be sending.
func (c *vsockConn) CloseWrite() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return vsockError("close", err)
	}
	var shutErr error
	err = raw.Control(func(fd uintptr) { shutErr = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return vsockError("close", errors.Join(err, shutErr))
}

func (c *vsockConn) Close() error                          { return vsockError("close", c.file.Close()) }
func (c *vsockConn) LocalAddr() net.Addr                   { return c.local }
func (c *vsockConn) RemoteAddr() net.Addr                  { return c.remote }
func (c *vsockConn) SetDeadline(t time.Time) error         { return c.file.SetDeadline(t) }
func (c *vsockConn) SetReadDeadline(t time.Time) error     { return c.file.SetReadDeadline(t) }
func (c *vsockConn) SetWriteDeadline(t time.Time) error    { return c.file.SetWriteDeadline(t) }
func (c *vsockConn) SyscallConn() (syscall.RawConn, error) { return c.file.SyscallConn() }

// vsockError makes an error of a file one of a connection, which is what
// net/http asks whether it is a timeout.
func vsockError(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	if errors.Is(err, os.ErrClosed) {
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "vsock", Err: err}
}
