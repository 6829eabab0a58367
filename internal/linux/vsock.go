package linux

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// VsockHost is the context id of the host, whichever guest asks (vsock(7)).
const VsockHost = unix.VMADDR_CID_HOST

// ListenVsock opens a non-blocking socket that listens on a vsock port, for
// connections from everywhere. The caller closes it.
func ListenVsock(port uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open vsock: %w", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return fd, nil
}

// AcceptVsock accepts a connection and tells where it is from. Without one it
// is EAGAIN, as it is: accept loops look at it.
func AcceptVsock(fd int) (conn int, cid, port uint32, err error) {
	var from unix.Sockaddr
	err = Retry(func() error {
		conn, from, err = unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return err
	})
	if err != nil {
		return -1, 0, 0, err
	}
	if vm, ok := from.(*unix.SockaddrVM); ok {
		cid, port = vm.CID, vm.Port
	}
	return conn, cid, port, nil
}
