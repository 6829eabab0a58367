package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Errors of input, for callers to distinguish.
var (
	ErrStdinClosed = errors.New("stdin is closed")
	ErrWrongInput  = errors.New("wrong kind of input")
)

// input is the way into a process: the write end of its stdin, or its
// terminal. Writers take turns; Close does not wait for them.
type input struct {
	file   *os.File // closed by close, or by the pump when it is a terminal
	turn   chan struct{}
	closed atomic.Bool
}

func newInput(f *os.File) *input {
	return &input{file: f, turn: make(chan struct{}, 1)}
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
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = in.file.SetWriteDeadline(time.Unix(1, 0)) // long past
	})
	n, err := in.file.Write(p)
	if !stop() {
		<-interrupted
		_ = in.file.SetWriteDeadline(time.Time{})
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
	if in.closed.Swap(true) {
		return nil
	}
	return in.file.Close()
}
