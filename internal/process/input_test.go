package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startBlocked starts a program that never reads its stdin and fills the pipe.
// The channel yields the end of the write that is blocked.
func startBlocked(ctx context.Context, r *rig) (*Process, *reader, <-chan error) {
	r.t.Helper()
	p, rd := r.start(withStdin(spec("sleep", "300")))
	ended := make(chan error, 1)
	go func() { ended <- p.WriteStdin(ctx, make([]byte, 1<<20)) }()
	p.mu.Lock()
	in := p.input
	p.mu.Unlock()
	eventually(r.t, "the write to block", func() bool { return len(in.turn) == 1 && full(r.t, in) })
	return p, rd, ended
}

// full tells whether the pipe has no room.
func full(t testing.TB, in *input) (yes bool) {
	t.Helper()
	file, err := in.open()
	must(t, err)
	conn, err := file.SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(poll, 0)
		yes = err == nil && n == 0
	}))
	return yes
}

// wantEnd expects a blocked write to end with one of the errors.
func wantEnd(t testing.TB, ended <-chan error, want ...error) {
	t.Helper()
	select {
	case err := <-ended:
		if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
			t.Errorf("the write ended with %v, want %v", err, want)
		}
	case <-time.After(patience):
		t.Fatal("the write does not end")
	}
}

// All input arrives whole and in order, whatever its pieces.
func TestInputArrives(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(withStdin(spec("sha256sum")))
		defer rd.close()
		sum := sha256.New()
		for i := range 300 {
			piece := bytes.Repeat([]byte{byte(i)}, i*i%9973+1)
			sum.Write(piece)
			must(t, p.WriteStdin(t.Context(), piece))
		}
		must(t, p.WriteStdin(t.Context(), nil))
		must(t, p.CloseStdin())
		must(t, p.CloseStdin())
		// The end of its input ends the program, too, sooner or later.
		if err := p.WriteStdin(t.Context(), []byte("x")); !errors.Is(err, ErrStdinClosed) && !errors.Is(err, ErrFinished) {
			t.Errorf("write after the end of input: %v", err)
		}
		out, _ := rd.all()
		if want := fmt.Sprintf("%x  -\n", sum.Sum(nil)); out != want {
			t.Errorf("got %q, want %q", out, want)
		}
		must(t, p.CloseStdin())
		wantError(t, p.WriteStdin(t.Context(), []byte("x")), ErrFinished)
	})
}

// Writers take turns: each write is whole, in the order of the calls.
func TestInputTakesTurns(t *testing.T) {
	const writers, size = 6, 200_000 // more than the pipe holds
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(withStdin(spec("cat")))
		defer rd.close()
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				if err := p.WriteStdin(t.Context(), bytes.Repeat([]byte{byte('a' + i)}, size)); err != nil {
					t.Error(err)
				}
			})
		}
		closed := make(chan error, 1)
		go func() {
			wg.Wait()
			closed <- p.CloseStdin()
		}()
		out, _ := rd.all()
		must(t, <-closed)
		seen := ""
		for i := 0; i+size <= len(out); i += size {
			if part := out[i : i+size]; strings.Count(part, part[:1]) != size {
				t.Fatalf("writes are mixed at %d", i)
			}
			seen += out[i : i+1]
		}
		if len(out) != writers*size || len(seen) != writers {
			t.Errorf("%d bytes of writers %q", len(out), seen)
		}
	})
}

// Closing stdin does not wait behind a blocked write, it ends it.
func TestCloseStdinWhileWriting(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd, ended := startBlocked(t.Context(), r)
		defer rd.close()
		began := time.Now()
		must(t, p.CloseStdin())
		if d := time.Since(began); d > time.Second {
			t.Errorf("close took %v", d)
		}
		err := <-ended
		wantError(t, err, ErrStdinClosed)
		if !strings.Contains(err.Error(), "wrote 65536 of 1048576") {
			t.Errorf("the error does not tell how much was written: %v", err)
		}
		must(t, p.Kill())
	})
}

// A write to a program that does not read ends with its context, those that
// wait for their turn too, and the next one can go on.
func TestInputContextEnds(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		cause := errors.New("the caller went")
		ctx, cancel := context.WithCancelCause(t.Context())
		p, rd, ended := startBlocked(ctx, r)
		defer rd.close()
		waiting, giveUp := context.WithCancel(t.Context())
		queued := make(chan error, 1)
		go func() { queued <- p.WriteStdin(waiting, []byte("x")) }()
		giveUp()
		wantEnd(t, queued, context.Canceled)
		cancel(cause)
		wantEnd(t, ended, cause)
		short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer stop()
		wantError(t, p.WriteStdin(short, []byte("x")), context.DeadlineExceeded)
		must(t, p.Kill())
	})
}

// A write blocked on a program that ends ends with it.
func TestInputEndsWithTheProgram(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd, ended := startBlocked(t.Context(), r)
		defer rd.close()
		must(t, p.Kill())
		wantEnd(t, ended, ErrFinished, ErrStdinClosed) // the pipe may close before the exit is seen
		// And one whose reader went before: a closed pipe, not a dead daemon.
		q, qd := r.start(withStdin(shell("exec <&-; echo closed; sleep 300")))
		defer qd.close()
		qd.expect("closed")
		wantError(t, q.WriteStdin(t.Context(), []byte("x")), ErrStdinClosed)
		must(t, q.Kill())
	})
}

// A program that never reads its stdin disturbs nobody.
func TestInputBlockedDisturbsNobody(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd, ended := startBlocked(t.Context(), r)
		defer rd.close()
		q, qd := r.start(withStdin(spec("cat")))
		defer qd.close()
		must(t, q.WriteStdin(t.Context(), []byte("through")))
		qd.expect("through")
		must(t, q.CloseStdin())
		qd.all()
		must(t, p.Signal(unix.SIGTERM))
		rd.all()
		wantEnd(t, ended, ErrFinished, ErrStdinClosed) // the pipe may close before the exit is seen
	})
}

func TestInputOfTheWrongKind(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		p, rd := r.start(withStdin(spec("cat")))
		defer rd.close()
		wantError(t, p.WriteTerminal(t.Context(), []byte("x")), ErrWrongInput)
		wantError(t, p.Resize(Size{1, 1}), ErrWrongInput)
		q, qd := r.start(onTerminal(spec("cat")))
		defer qd.close()
		wantError(t, q.WriteStdin(t.Context(), []byte("x")), ErrWrongInput)
		wantError(t, q.CloseStdin(), ErrWrongInput)
		n, nd := r.start(spec("sleep", "300"))
		defer nd.close()
		wantError(t, n.WriteStdin(t.Context(), []byte("x")), ErrStdinClosed)
		must(t, n.CloseStdin())
		if out, _ := r.run(spec("cat")); out != "" {
			t.Errorf("without stdin, cat reads %q", out)
		}
		for _, p := range []*Process{p, q, n} {
			must(t, p.Kill())
		}
	})
}
