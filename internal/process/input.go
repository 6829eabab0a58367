package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

// Errors of input, for callers to distinguish.
var (
	ErrStdinClosed = errors.New("stdin is closed")
	ErrWrongInput  = errors.New("wrong kind of input")
)

// input is the way into a process: the write end of its stdin, or its
// terminal. Writers take turns; Close does not wait for them.
type input struct {
	turn chan struct{}

	mu     sync.Mutex
	pipe   linux.Descriptor // until the first write makes it a file; guarded by mu, as is all below
	file   *os.File         // closed by close, or by the pump when it is a terminal
	closed bool
}

func newInput(pipe linux.Descriptor) *input {
	return &input{turn: make(chan struct{}, 1), pipe: pipe}
}

func newTerminalInput(master *os.File) *input {
	return &input{turn: make(chan struct{}, 1), pipe: -1, file: master}
}

// open answers the file to write to. Most commands are never written to, and a
// file that the runtime polls wakes it twice for each of them.
func (in *input) open() (*os.File, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil, ErrStdinClosed
	}
	if in.file == nil {
		in.file, in.pipe = in.pipe.File("stdin"), -1
	}
	return in.file, nil
}

// write writes all of p, after the writes before it. When the process does not
// read, it waits until ctx ends or the input is closed; the error then tells
// how much was written.
func (in *input) write(ctx context.Context, p []byte) error {
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return fmt.Errorf("write 0 of %d input bytes: %w", len(p), context.Cause(ctx))
	}
	file, err := in.open()
	if err != nil {
		return fmt.Errorf("wrote 0 of %d input bytes: %w", len(p), err)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = file.SetWriteDeadline(time.Unix(1, 0)) // long past
	})
	n, err := file.Write(p)
	if !stop() {
		<-interrupted
		_ = file.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = context.Cause(ctx)
	case errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EIO):
		err = ErrStdinClosed
	}
	return fmt.Errorf("wrote %d of %d input bytes: %w", n, len(p), err)
}

// close ends the input at once, for a blocked writer too.
func (in *input) close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return nil
	case in.file != nil:
		in.closed = true
		return in.file.Close()
	default:
		in.closed = true
		return in.pipe.Close()
	}
}
