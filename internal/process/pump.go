package process

import (
	"errors"
	"io"
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
	burstBytes = 256 << 10
	// lingerTime bounds the wait for the next piece of a fast stream. It blocks
	// a thread.
	lingerTime = time.Millisecond
	// youngTime is for how long a command counts as one that may end at once.
	youngTime = 5 * time.Millisecond
	// armAgain lies between two attempts to have a pump polled.
	armAgain = 10 * time.Millisecond
	// maxLingering bounds the threads that are blocked so at one time.
	maxLingering = 4
	// takeOver is the size of a read from which its block goes into the log as
	// it is; smaller reads are copied and the block is used again. In bytes. The
	// rest of such a block is memory that the window does not count.
	takeOver = blockSize * 3 / 4
)

// pump moves one pipe or terminal into the log until its end. It owns the
// descriptor. The poller calls ready when there is something to read; a reader
// that is alone may call pull. There is no goroutine and, while there is
// nothing to read, no buffer.
type pump struct {
	stream Stream
	file   io.Closer
	fd     int // of file, while it is not closed
	out    *Output
	poller *poller
	id     int32           // in the poller
	bell   chan<- struct{} // rings after each read, around each wait for room and at the end
	onEnd  func()          // called once, after done is closed
	done   chan struct{}   // closed at the end

	mu      sync.Mutex // held around a read and its append: read and Buffered agree
	read    int64      // bytes; guarded by mu
	waiting bool       // for room in the log, or while a reader drives; not armed; guarded by mu
	closed  bool       // guarded by mu
	polled  bool       // the poller's epoll knows fd; guarded by mu
	grown   bool       // guarded by mu
}

func (p *pump) ring() {
	select {
	case p.bell <- struct{}{}:
	default:
	}
}

// ready reads when there is something to read, and asks to be called again:
// at once, or when there is room in the log. The poller calls it.
func (p *pump) ready() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.waiting = p.out.wait(p)
	if p.waiting {
		p.mu.Unlock()
		p.ring()
		return
	}
	before := p.read
	ended := p.burst()
	moved := p.read > before
	p.mu.Unlock()
	if moved { // the end alone is no news to readers yet
		p.out.notify()
	}
	if ended {
		p.end()
		return
	}
	p.ring()
	p.arm()
}

// resume is called when there is room again.
func (p *pump) resume() {
	p.mu.Lock()
	p.waiting = false
	p.mu.Unlock()
	p.ring()
	p.arm()
}

// arm asks the poller for the next input. A pump that has been closed
// meanwhile is not in the poller any more.
func (p *pump) arm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
	case p.polled:
		_ = p.poller.epoll.Arm(p.fd, p.id) // fails only for what is not there
	default:
		p.polled = p.poller.epoll.Add(p.fd, p.id) == nil
		if !p.polled { // out of memory, or past fs.epoll.max_user_watches
			time.AfterFunc(armAgain, p.arm)
		}
	}
}

// pull reads what is there without waiting, for a reader that drives. The end
// is left for ready to find.
func (p *pump) pull() {
	p.mu.Lock()
	before := p.read
	if !p.closed && p.out.pullable() {
		p.burst()
	}
	moved := p.read > before
	p.mu.Unlock()
	if moved {
		p.out.notify()
		p.ring()
	}
}

// flush reads what is there once more, and ends at the end: the leader has
// exited, and mostly nobody else holds the other side. Without room in the log
// it leaves that to ready.
func (p *pump) flush() {
	p.mu.Lock()
	if p.closed || !p.out.roomy() {
		p.mu.Unlock()
		return
	}
	before := p.read
	ended := p.burst()
	moved := p.read > before
	p.mu.Unlock()
	if moved {
		p.out.notify()
		p.ring()
	}
	if ended {
		p.end()
	}
}

// last reads what was written until now, room in the log or not: the end is
// about to be recorded behind it, and who still reads must not miss any.
func (p *pump) last() {
	mark, _ := p.mark() // without it, nothing is known to be there
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && p.read < mark {
		if n, err := p.once(); err != nil || n == 0 {
			return
		}
	}
}

// burst reads what is there, within reason, and tells whether that was the
// end. Errors other than the end do not exist for pipes, and a terminal's EIO
// is its end: all of its other side is closed. The log may exceed its window by
// as much as a burst. The caller holds mu.
func (p *pump) burst() (ended bool) {
	for n := 0; n < burstBytes; {
		got, err := p.once()
		n += max(got, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil || got == 0:
			return true
		case got < blockSize: // that was all
			return false
		}
	}
	return false
}

// once reads once and appends. The caller holds mu.
func (p *pump) once() (int, error) {
	b := newBlock()
	n, err := linux.Read(uintptr(p.fd), b.buf[:])
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
		_ = linux.GrowPipe(uintptr(p.fd), busyPipe) // refused past a limit of the user's: slower, no harm
	}
	return n, err
}

// end closes the descriptor. It may be called again.
func (p *pump) end() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed, p.waiting = true, false
	p.poller.remove(p)
	_ = p.file.Close() // read only
	close(p.done)
	p.mu.Unlock()
	p.ring()
	p.onEnd()
}

// mark answers how far reading has to get to cover all written until now.
func (p *pump) mark() (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.read, nil
	}
	buffered, err := linux.Buffered(uintptr(p.fd))
	return p.read + int64(buffered), err
}

// progress answers how far reading got, and whether it waits for a reader.
func (p *pump) progress() (read int64, waiting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read, p.waiting
}

func (p *pump) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
