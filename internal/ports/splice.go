package ports

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// pipeSize is how much may be under way in one direction, in bytes, beside
	// what the sockets hold.
	pipeSize = 1 << 20
	// sparePipes are kept open for the next data.
	sparePipes = 4
)

// pipePool lends pipes to connections while they move data: a connection at
// rest has none.
type pipePool struct {
	mu     sync.Mutex
	spare  []*linux.SplicePipe // guarded by mu
	closed bool                // guarded by mu
}

func (p *pipePool) take() (*linux.SplicePipe, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.spare); n > 0 {
		pipe := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return pipe, nil
	}
	return linux.OpenSplicePipe(pipeSize) //nolint:wrapcheck // copy names it
}

// give takes an empty pipe back.
func (p *pipePool) give(pipe *linux.SplicePipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.spare) >= sparePipes {
		_ = pipe.Close()
		return
	}
	p.spare = append(p.spare, pipe)
}

// close closes the pipes that are not lent, and those that come back.
func (p *pipePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pipe := range p.spare {
		_ = pipe.Close()
	}
	p.spare, p.closed = nil, true
}

// copier moves what src sends to dst. Its callbacks are made once: data comes
// in many small pieces.
type copier struct {
	pool     *pipePool
	src, dst syscall.RawConn
	pipe     *linux.SplicePipe // nil while there is nothing to move
	held     int               // bytes in the pipe
	err      error             // of a callback
	fill     func(fd uintptr) bool
	drain    func(fd uintptr) bool
}

// copy moves data until src ends, which is no error, or either side fails;
// reading says that it was src.
func (p *pipePool) copy(dst, src side, count *atomic.Uint64) (reading bool, err error) {
	c := copier{pool: p}
	if c.src, err = src.SyscallConn(); err == nil {
		c.dst, err = dst.SyscallConn()
	}
	if err != nil {
		return true, fmt.Errorf("forward: %w", err)
	}
	c.fill, c.drain = c.doFill, c.doDrain
	defer c.release()
	for {
		if err := c.read(); err != nil {
			if err == io.EOF { //nolint:errorlint // our own
				err = nil
			}
			return true, err
		}
		n := c.held
		if err := c.write(); err != nil {
			return false, err
		}
		count.Add(uint64(n))
	}
}

// read waits for data and fills the pipe with it.
func (c *copier) read() error {
	if err := c.src.Read(c.fill); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	switch {
	case c.err != nil:
		return fmt.Errorf("forward: %w", c.err)
	case c.held == 0:
		return io.EOF
	}
	return nil
}

// doFill is a callback of the runtime's poller: false makes it wait.
func (c *copier) doFill(fd uintptr) bool {
	if c.pipe == nil {
		if c.pipe, c.err = c.pool.take(); c.err != nil {
			return true
		}
	}
	c.held, c.err = c.pipe.Fill(fd)
	if c.err == unix.EAGAIN { //nolint:errorlint // an errno
		c.held, c.err = 0, nil
		c.release()
		return false
	}
	return true
}

// write empties the pipe.
func (c *copier) write() error {
	for c.held > 0 {
		if err := c.dst.Write(c.drain); err != nil {
			return fmt.Errorf("forward: %w", err)
		}
		if c.err != nil {
			return fmt.Errorf("forward: %w", c.err)
		}
	}
	return nil
}

// doDrain is like doFill.
func (c *copier) doDrain(fd uintptr) bool {
	n, err := c.pipe.Drain(fd, c.held)
	if err == unix.EAGAIN { //nolint:errorlint // an errno
		return false
	}
	c.held, c.err = c.held-max(0, n), err
	return true
}

// release lets go of the pipe. One that still holds data is of no more use.
func (c *copier) release() {
	switch {
	case c.pipe == nil:
	case c.held > 0:
		_ = c.pipe.Close()
	default:
		c.pool.give(c.pipe)
	}
	c.pipe = nil
}
