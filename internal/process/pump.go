package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// busyPipe is what a pipe is enlarged to once a read has filled a block,
	// in bytes: the most that fs.pipe-max-size allows by default.
	busyPipe = 1 << 20
	// burstBytes is how much is read before the readers are woken.
	burstBytes = 128 << 10
	// takeOver is the size of a read from which its block goes into the log as
	// it is; smaller reads are copied and the block is used again. In bytes.
	takeOver = blockSize / 4
)

// pump moves one pipe or terminal into the log until end of file. It owns the
// file and closes it. While there is nothing to read it holds no buffer.
type pump struct {
	stream Stream
	file   *os.File
	out    *Output
	quit   <-chan struct{} // closed to give up
	bell   chan<- struct{} // rings after each read, around each wait for room and at the end
	done   chan struct{}   // closed at the end

	mu      sync.Mutex // held around a read and its append: read and Buffered agree
	read    int64      // bytes; guarded by mu
	waiting bool       // for room in the log; guarded by mu
	grown   bool       // pump's goroutine only
}

func newPump(s Stream, f *os.File, out *Output, quit <-chan struct{}, bell chan<- struct{}) *pump {
	return &pump{stream: s, file: f, out: out, quit: quit, bell: bell, done: make(chan struct{})}
}

// run reads to the end. Errors other than the end do not exist for pipes, and
// a terminal's EIO is its end (all its other side closed).
func (p *pump) run() {
	defer p.ring()
	defer close(p.done)
	defer p.file.Close() //nolint:errcheck // read only
	conn, err := p.file.SyscallConn()
	if err != nil {
		return
	}
	for p.reserve() {
		ended := false
		err := conn.Read(func(fd uintptr) bool {
			if p.out.reserve() != nil {
				return true // a reader has taken over meanwhile
			}
			var n int
			n, ended = p.burst(fd)
			return ended || n > 0
		})
		p.out.notify()
		if ended || err != nil {
			return
		}
		p.ring()
	}
}

func (p *pump) ring() {
	select {
	case p.bell <- struct{}{}:
	default:
	}
}

// reserve waits for room in the log. False means to give up.
func (p *pump) reserve() bool {
	room := p.out.reserve()
	if room == nil {
		return true
	}
	p.setWaiting(true)
	defer p.setWaiting(false)
	for ; room != nil; room = p.out.reserve() {
		select {
		case <-room:
		case <-p.quit:
			return false
		}
	}
	return true
}

func (p *pump) setWaiting(w bool) {
	p.mu.Lock()
	p.waiting = w
	p.mu.Unlock()
	p.ring()
}

// pull reads what is there without waiting, for a reader that drives. The end
// is left for run to find.
func (p *pump) pull() {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return
	}
	read := 0
	_ = conn.Control(func(fd uintptr) { read, _ = p.burst(fd) }) // fails when closed: nothing to read
	if read > 0 {
		p.ring()
	}
}

// burst reads what is there, within reason. The log may exceed its window by
// as much.
func (p *pump) burst(fd uintptr) (n int, ended bool) {
	for n < burstBytes {
		got, err := p.once(fd)
		n += max(got, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n, false
		case err != nil || got == 0:
			return n, true
		case got < blockSize: // that was all
			return n, false
		}
	}
	return n, false
}

// once reads once and appends.
func (p *pump) once(fd uintptr) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := newBlock()
	n, err := linux.Read(fd, b.buf[:])
	switch {
	case n >= takeOver:
		p.out.append(p.stream, b.buf[:n], b)
	case n > 0:
		p.out.append(p.stream, b.buf[:n], nil)
		b.unref()
	default:
		b.unref()
	}
	p.read += int64(max(n, 0))
	if n == blockSize && !p.grown && p.stream != Terminal {
		p.grown = true
		_ = linux.GrowPipe(fd, busyPipe) // refused past a limit of the user's: slower, no harm
	}
	return n, err
}

// mark answers how far reading has to get to cover all written until now.
func (p *pump) mark() (int64, error) {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("mark output: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	buffered := 0
	ctlErr := conn.Control(func(fd uintptr) { buffered, err = linux.Buffered(fd) })
	return p.read + int64(buffered), errors.Join(ctlErr, err)
}

// progress answers how far reading got, and whether it waits for a reader.
func (p *pump) progress() (read int64, waiting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read, p.waiting
}

// interrupt makes run give up while it waits for input. Once quit is closed, it
// does not wait for room either.
func (p *pump) interrupt() {
	_ = p.file.SetReadDeadline(time.Unix(1, 0)) // long past; closed is fine
}

func (p *pump) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
