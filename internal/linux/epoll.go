package linux

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Epoll waits for input on many descriptors on one goroutine. An epoll
// instance can itself be polled, so the goroutine costs no thread while there
// is nothing. Add, Arm and Remove are safe for concurrent use; Wait is for one
// goroutine.
type Epoll struct {
	file *os.File
	conn syscall.RawConn
}

// OpenEpoll makes an empty instance.
func OpenEpoll() (*Epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	// The flag says nothing to epoll; it makes the runtime poll the file.
	_ = unix.SetNonblock(fd, true)
	e := &Epoll{file: os.NewFile(uintptr(fd), "epoll")}
	if e.conn, err = e.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, e.file.Close())
	}
	return e, nil
}

// Add watches fd for input or its end, once; then Arm watches it again. Wait
// reports it as id.
func (e *Epoll) Add(fd int, id int32) error { return e.control(unix.EPOLL_CTL_ADD, fd, id) }

// Arm watches fd once more. What is there already counts.
func (e *Epoll) Arm(fd int, id int32) error { return e.control(unix.EPOLL_CTL_MOD, fd, id) }

// Remove forgets fd, as closing the last descriptor of its file does.
func (e *Epoll) Remove(fd int) error { return e.control(unix.EPOLL_CTL_DEL, fd, 0) }

func (e *Epoll) control(op, fd int, id int32) error {
	var err error
	ctlErr := e.conn.Control(func(ep uintptr) {
		err = unix.EpollCtl(int(ep), op, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: id})
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// Wait waits until something is there, and answers the ids, in buf. It fails
// after Close.
func (e *Epoll) Wait(buf []unix.EpollEvent) (n int, err error) {
	pollErr := e.conn.Read(func(ep uintptr) bool {
		n, err = RetryInt(func() (int, error) { return unix.EpollWait(int(ep), buf, 0) })
		return n > 0 || err != nil
	})
	return n, errors.Join(pollErr, err)
}

// Close makes Wait return.
func (e *Epoll) Close() error { return e.file.Close() }
