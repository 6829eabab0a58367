package linux

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

func TestPipeModes(t *testing.T) {
	leaktest.Check(t)
	for name, open := range map[string]func() (ours, childs Descriptor, err error){
		"reading": PipeForReading, "writing": PipeForWriting,
	} {
		t.Run(name, func(t *testing.T) {
			d, c, err := open()
			must(t, err)
			ours, childs := d.File("ours"), c.File("child's")
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
	d, c, err := PipeForReading()
	must(t, err)
	ours, childs := d.File("ours"), c.File("child's")
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
	d, c, err := PipeForWriting()
	must(t, err)
	ours, childs := d.File("ours"), c.File("child's")
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
	d, c, err := PipeForReading()
	must(t, err)
	ours, childs := d.File("ours"), c.File("child's")
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

// TestAwaitInput waits on two pipes and, as the last, on a child that ends when
// its input does.
func TestAwaitInput(t *testing.T) {
	leaktest.Check(t)
	const short, long = 30 * time.Millisecond, 10 * time.Second
	var read, write [2]*os.File
	for i := range read {
		var err error
		read[i], write[i], err = os.Pipe()
		must(t, err)
		defer read[i].Close()
		defer write[i].Close()
	}
	child := exec.Command("cat")
	input, err := child.StdinPipe()
	must(t, err)
	must(t, child.Start())
	pidfd, err := OpenPidfd(child.Process.Pid)
	must(t, err)
	defer unix.Close(pidfd)
	await := func(limit time.Duration) (last bool, took time.Duration) {
		began := time.Now()
		last = AwaitInput(limit, int(read[0].Fd()), int(read[1].Fd()), pidfd)
		return last, time.Since(began)
	}

	if last, took := await(short); last || took < short {
		t.Errorf("nothing: %v after %v", last, took)
	}
	_, err = write[1].WriteString("x")
	must(t, err)
	if last, took := await(long); last || took > long/2 {
		t.Errorf("input: %v after %v", last, took)
	}
	_, err = read[1].Read(make([]byte, 1))
	must(t, err)
	must(t, write[0].Close())
	if last, took := await(short); last || took < short {
		t.Errorf("the end of one: %v after %v", last, took)
	}
	must(t, write[1].Close())
	time.AfterFunc(short, func() { _ = input.Close() })
	interrupted := time.AfterFunc(short/2, func() { _ = unix.Kill(os.Getpid(), unix.SIGURG) })
	defer interrupted.Stop()
	if last, took := await(long); !last || took < short/2 || took > long/2 {
		t.Errorf("the end of all, the last after a moment: %v after %v", last, took)
	}
	must(t, child.Wait())
	if !AwaitInput(long, -2, pidfd) { // a negative one is passed over
		t.Error("a child that has been reaped does not count as ended")
	}
	if last := AwaitInput(long, 1<<20, int(read[0].Fd())); last {
		t.Error("what is not open has input")
	}
}
