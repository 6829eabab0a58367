package filesystem

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// bufferSize of a copy through memory. Contents up to this size reach the file
// in one write, which watchers see as one event.
const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// receive appends src to dst at its offset. size is how much src must yield, or
// negative. The kernel copies where src is a file or a socket, or a limited
// part of one; for the rest, what came before an error is written too.
func receive(dst *os.File, src io.Reader, size int64) error {
	var n int64
	var err error
	if kernelCopies(src) {
		n, err = dst.ReadFrom(src)
	} else {
		n, err = pump(dst, src)
	}
	if err == nil && n < size {
		err = fmt.Errorf("%w: %w after %d of %d bytes", ErrSource, io.ErrUnexpectedEOF, n, size)
	}
	return err
}

// kernelCopies says whether os.File.ReadFrom may have a system call for src.
func kernelCopies(src io.Reader) bool {
	if part, ok := src.(*io.LimitedReader); ok {
		src = part.R
	}
	_, ok := src.(syscall.Conn)
	return ok
}

// pump copies src to dst in writes of whole buffers. An error of src comes with
// ErrSource.
func pump(dst io.Writer, src io.Reader) (written int64, err error) {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, readErr := fill(src, buf[:])
		if n > 0 {
			w, err := dst.Write(buf[:n])
			written += int64(w)
			if err != nil {
				return written, err
			}
		}
		switch {
		case readErr == nil:
		case errors.Is(readErr, io.EOF):
			return written, nil
		default:
			return written, fmt.Errorf("%w: %w", ErrSource, readErr)
		}
	}
}

// fill reads until buf is full or src ends. It is not io.ReadFull, whose
// io.ErrUnexpectedEOF could be the short end of src or src's own error: a client
// that went away looks like that.
func fill(src io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = src.Read(buf[n:])
		n += m
	}
	return n, err
}
