package linux

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// PipeForReading makes a pipe for a child's output. Our end is non-blocking; the
// child's end blocks, since programs do not expect EAGAIN from a pipe. The
// caller closes both.
func PipeForReading() (ours, childs Descriptor, err error) {
	r, w, err := pipe()
	if err != nil {
		return -1, -1, err
	}
	return ownEnd(r), Descriptor(w), nil
}

// PipeForWriting makes a pipe for a child's input; see PipeForReading.
func PipeForWriting() (ours, childs Descriptor, err error) {
	r, w, err := pipe()
	if err != nil {
		return -1, -1, err
	}
	return ownEnd(w), Descriptor(r), nil
}

// Descriptor is an open file that the runtime does not poll: it costs nothing
// beyond the kernel's. Whoever has it closes it, once.
type Descriptor int

// Close closes the descriptor.
func (d Descriptor) Close() error { return unix.Close(int(d)) }

// File hands the descriptor, which is non-blocking, to the runtime's poller. It
// is the file's from then on, whose Close interrupts reads and writes.
func (d Descriptor) File(name string) *os.File { return os.NewFile(uintptr(d), name) }

func pipe() (r, w int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("pipe2: %w", err)
	}
	return fds[0], fds[1], nil
}

// ownEnd makes fd non-blocking. The two ends of a pipe are separate file
// descriptions: the other one stays as it is.
func ownEnd(fd int) Descriptor {
	// Fails only for a bad descriptor. There is no flag to keep: access modes
	// are not settable, and O_APPEND and the like are not set.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK)
	return Descriptor(fd)
}

// GrowPipe enlarges the pipe behind fd to size bytes. Without CAP_SYS_RESOURCE
// the kernel refuses more than fs.pipe-max-size.
func GrowPipe(fd uintptr, size int) error {
	if _, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, size); err != nil {
		return fmt.Errorf("set pipe size: %w", err)
	}
	return nil
}

// Buffered reports how many bytes wait to be read from a pipe, a terminal or an
// inotify queue.
func Buffered(fd uintptr) (int, error) {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	if err != nil {
		return 0, fmt.Errorf("ioctl TIOCINQ: %w", err)
	}
	return n, nil
}

// Read is read(2) on a non-blocking descriptor, without allocating.
func Read(fd uintptr, p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// closePause is for how long, when the other side of one descriptor is closed, only
// the last one is waited for: a program that ends closes its output piece by piece,
// and each would wake the thread, on one processor instead of the program.
const closePause = 500 * time.Microsecond

// AwaitInput blocks the thread until there is input on one of fds, or closePause
// longer, for limit at most. One whose other side is closed has none. It tells
// whether there is some on the last one.
func AwaitInput(limit time.Duration, fds ...int) (last bool) {
	polls := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	awaited, wait := polls, time.Duration(0) // first, what is there already
	for end := time.Now().Add(limit); ; wait = min(wait, time.Until(end)) {
		timeout := unix.NsecToTimespec(max(wait, 0).Nanoseconds())
		if _, err := unix.Ppoll(awaited, &timeout, nil); err != nil {
			continue // a signal
		}
		closed := false
		for i := range awaited {
			switch p := &awaited[i]; {
			case p.Revents&(unix.POLLIN|unix.POLLNVAL) != 0:
				return awaited[len(awaited)-1].Revents&unix.POLLIN != 0
			case p.Revents != 0: // POLLHUP cannot be left out
				p.Fd = -1
				closed = wait > 0
			}
		}
		if time.Until(end) <= 0 {
			return false
		}
		if awaited, wait = polls, limit; closed {
			awaited, wait = polls[len(polls)-1:], closePause
		}
	}
}

// OpenNull opens /dev/null for reading. os.Open would have the runtime try to
// poll it, in six system calls.
func OpenNull() (Descriptor, error) {
	fd, err := RetryInt(func() (int, error) { return unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	return Descriptor(fd), nil
}
