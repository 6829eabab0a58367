package linux

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

func TestTTYModesAndSize(t *testing.T) {
	leaktest.Check(t)
	master, s, err := OpenTTY()
	must(t, err)
	slave := s.File("slave")
	defer master.Close()
	defer slave.Close()
	wantCloseOnExec(t, master)
	wantCloseOnExec(t, slave)
	if !nonblocking(t, master) {
		t.Error("the master blocks")
	}
	if nonblocking(t, slave) {
		t.Error("the child's side does not block")
	}
	control(t, master, func(fd uintptr) error { return SetTTYSize(fd, 132, 43) })
	control(t, slave, func(fd uintptr) error {
		ws, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ)
		if err == nil && (ws.Col != 132 || ws.Row != 43) {
			t.Errorf("size %dx%d, want 132x43", ws.Col, ws.Row)
		}
		return err
	})
}

// A master left in blocking mode could not be interrupted.
func TestTTYMasterCloseInterruptsRead(t *testing.T) {
	leaktest.Check(t)
	master, s, err := OpenTTY()
	must(t, err)
	slave := s.File("slave")
	defer slave.Close()
	reading := make(chan struct{})
	ended := make(chan error)
	go func() {
		close(reading)
		_, err := master.Read(make([]byte, 1))
		ended <- err
	}()
	<-reading
	must(t, master.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read ended with %v, want %v", err, os.ErrClosed)
	}
}

// A terminal has no end of file: its reader gets all that was written, then EIO.
func TestTTYEndsWithEIO(t *testing.T) {
	leaktest.Check(t)
	master, s, err := OpenTTY()
	must(t, err)
	slave := s.File("slave")
	defer master.Close()
	_, err = slave.WriteString("last words")
	must(t, err)
	must(t, slave.Close())
	buf := make([]byte, 64)
	n, err := master.Read(buf)
	if string(buf[:n]) != "last words" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if n, err := master.Read(buf); n != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("read %d, %v; want EIO", n, err)
	}
}
