package linux

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// SplicePipe is a pipe through which data moves between two sockets without a
// copy (splice(2)). Neither end blocks. It is for one goroutine at a time.
type SplicePipe struct{ r, w int }

// OpenSplicePipe makes a pipe of size bytes, or of what the kernel grants. The
// caller closes it.
func OpenSplicePipe(size int) (*SplicePipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe2: %w", err)
	}
	_ = GrowPipe(uintptr(fds[1]), size) // smaller works as well
	return &SplicePipe{fds[0], fds[1]}, nil
}

// Fill moves what there is from fd into the empty pipe; 0 is the end of the
// input, EAGAIN that there is nothing yet.
func (p *SplicePipe) Fill(fd uintptr) (int, error) {
	return splice(int(fd), p.w, math.MaxInt32)
}

// Drain moves up to n bytes from the pipe to fd; EAGAIN means that fd takes
// nothing now.
func (p *SplicePipe) Drain(fd uintptr, n int) (int, error) {
	return splice(p.r, int(fd), n)
}

func splice(from, to, n int) (int, error) {
	for {
		moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return int(moved), err //nolint:wrapcheck // callers compare it
		}
	}
}

// Close closes both ends; what is in the pipe is lost.
func (p *SplicePipe) Close() error {
	if err := errors.Join(unix.Close(p.r), unix.Close(p.w)); err != nil {
		return fmt.Errorf("close pipe: %w", err)
	}
	return nil
}
