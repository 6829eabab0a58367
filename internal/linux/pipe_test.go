package linux

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

func TestPipeModes(t *testing.T) {
	leaktest.Check(t)
	for name, open := range map[string]func() (Descriptor, *os.File, error){
		"reading": PipeForReading, "writing": PipeForWriting,
	} {
		t.Run(name, func(t *testing.T) {
			d, childs, err := open()
			must(t, err)
			ours := d.File("ours")
			defer ours.Close()
			defer childs.Close()
			wantCloseOnExec(t, ours)
			wantCloseOnExec(t, childs)
			if !nonblocking(t, ours) {
				t.Error("our end blocks: Close could not interrupt it")
			}
			if nonblocking(t, childs) {
				t.Error("the child's end does not block: programs do not expect EAGAIN")
			}
			// Passing a file to fork uses Fd, which must change neither.
			childs.Fd()
			if nonblocking(t, childs) || !nonblocking(t, ours) {
				t.Error("Fd of the child's end changed a mode")
			}
		})
	}
}

func TestPipeCloseInterruptsRead(t *testing.T) {
	leaktest.Check(t)
	d, childs, err := PipeForReading()
	must(t, err)
	ours := d.File("ours")
	defer childs.Close()
	ended := make(chan error)
	reading := make(chan struct{})
	go func() {
		close(reading)
		_, err := ours.Read(make([]byte, 1))
		ended <- err
	}()
	<-reading
	must(t, ours.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read ended with %v, want %v", err, os.ErrClosed)
	}
}

func TestPipeCloseInterruptsWrite(t *testing.T) {
	leaktest.Check(t)
	d, childs, err := PipeForWriting()
	must(t, err)
	ours := d.File("ours")
	defer childs.Close()
	ended := make(chan error)
	go func() {
		_, err := ours.Write(make([]byte, 1<<20)) // more than the pipe holds
		ended <- err
	}()
	_, err = io.ReadFull(childs, make([]byte, 1)) // it is under way
	must(t, err)
	must(t, ours.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("write ended with %v, want %v", err, os.ErrClosed)
	}
}

func TestPipeBufferedReadAndGrow(t *testing.T) {
	leaktest.Check(t)
	d, childs, err := PipeForReading()
	must(t, err)
	ours := d.File("ours")
	defer ours.Close()
	defer childs.Close()
	control(t, ours, func(fd uintptr) error {
		if _, err := Read(fd, make([]byte, 1)); err != unix.EAGAIN { //nolint:errorlint // a bare errno
			t.Errorf("read of an empty pipe: %v, want EAGAIN", err)
		}
		must(t, GrowPipe(fd, 1<<20))
		if size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); size != 1<<20 || err != nil {
			t.Errorf("pipe size %d, %v; want 1 MiB", size, err)
		}
		return nil
	})
	const size = 500_000 // fits the grown pipe only
	_, err = childs.Write(make([]byte, size))
	must(t, err)
	control(t, ours, func(fd uintptr) error {
		if n, err := Buffered(fd); n != size || err != nil {
			t.Errorf("buffered %d, %v; want %d", n, err, size)
		}
		n, err := Read(fd, make([]byte, size))
		if n != size || err != nil {
			t.Errorf("read %d, %v; want %d", n, err, size)
		}
		return nil
	})
}

func TestPipeErrorsNameTheCall(t *testing.T) {
	bad := uintptr(1 << 20)
	if err := GrowPipe(bad, 1); !errors.Is(err, unix.EBADF) {
		t.Errorf("grow: %v, want EBADF", err)
	}
	if _, err := Buffered(bad); !errors.Is(err, unix.EBADF) {
		t.Errorf("buffered: %v, want EBADF", err)
	}
	if _, err := TCPState(bad); !errors.Is(err, unix.EBADF) {
		t.Errorf("tcp state: %v, want EBADF", err)
	}
	if err := SetTTYSize(bad, 1, 1); !errors.Is(err, unix.EBADF) {
		t.Errorf("tty size: %v, want EBADF", err)
	}
}
