package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/process"
)

func inputStart(sel *pb.ProcessSelector) *pb.StreamInputRequest {
	return &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{
		Start: &pb.StreamInputRequest_StartEvent{Process: sel},
	}}
}

func inputData(b []byte) *pb.StreamInputRequest {
	return inputOf(&pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: b}})
}

func inputOf(in *pb.ProcessInput) *pb.StreamInputRequest {
	return &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{
		Data: &pb.StreamInputRequest_DataEvent{Input: in},
	}}
}

var inputKeepalive = &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Keepalive{
	Keepalive: &pb.StreamInputRequest_KeepAlive{},
}}

func TestSendInputInOrder(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat"}})
		var want []byte
		for i := range 50 {
			b := fmt.Appendf(nil, "%d,", i)
			want = append(want, b...)
			c.must(c.sendInput(ctx, pid(f.pid), b))
		}
		c.must(c.sendInput(ctx, pid(f.pid), nil)) // nothing is fine
		c.must(c.closeStdin(ctx, pid(f.pid)))
		if f.exit(0); !bytes.Equal(f.stdout, want) {
			t.Errorf("got %q", f.stdout)
		}
	})
}

// TestStreamInputWhole sends 8 MiB through cat in messages of all sizes.
func TestStreamInputWhole(t *testing.T) {
	spread(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat"}})
		want := sha256.New()
		sent := make(chan error, 1)
		go func() { sent <- c.pour(ctx, pid(f.pid), 8<<20, want) }()
		f.rest()
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(f.stdout); len(f.stdout) != 8<<20 || !bytes.Equal(got[:], want.Sum(nil)) {
			t.Errorf("%d bytes came back, and not those sent", len(f.stdout))
		}
	})
}

// pour streams size bytes and closes stdin.
func (c *call) pour(ctx context.Context, sel *pb.ProcessSelector, size int, sum io.Writer) error {
	in, err := c.input(ctx)
	if err != nil {
		return err
	}
	if err := in.send(inputStart(sel)); err != nil {
		return err
	}
	src := rand.NewChaCha8([32]byte{1})
	sizes := []int{1, 0, 3, 4095, 65537, 1 << 20, 7}
	for i := 0; size > 0; i++ {
		b := make([]byte, min(size, sizes[i%len(sizes)]))
		_, _ = src.Read(b)
		_, _ = sum.Write(b)
		size -= len(b)
		if err := in.send(inputData(b)); err != nil {
			return errors.Join(err, in.finish())
		}
		if i%5 == 0 {
			if err := in.send(inputKeepalive); err != nil {
				return err
			}
		}
	}
	if err := in.finish(); err != nil {
		return err
	}
	return c.closeStdin(ctx, sel)
}

func TestStreamInputErrors(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "cat"}})
		for _, row := range []struct {
			name     string
			messages []*pb.StreamInputRequest
			code     connect.Code
		}{
			{"data before start", []*pb.StreamInputRequest{inputData([]byte("x"))}, connect.CodeFailedPrecondition},
			{"wrong kind", []*pb.StreamInputRequest{
				inputStart(pid(f.pid)),
				inputOf(&pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: []byte("x")}}),
			}, connect.CodeFailedPrecondition},
			{"no event", []*pb.StreamInputRequest{{}}, connect.CodeInvalidArgument},
			{"no input", []*pb.StreamInputRequest{inputStart(pid(f.pid)), inputOf(nil)}, connect.CodeInvalidArgument},
		} {
			in, err := c.input(ctx)
			c.must(err)
			for _, m := range row.messages {
				_ = in.send(m) // the answer tells
			}
			if err := in.finish(); connect.CodeOf(err) != row.code {
				t.Errorf("%s: %v, expected %v", row.name, err, row.code)
			}
		}
		// An empty stream, and keepalives before the start, are harmless.
		in, err := c.input(ctx)
		c.must(err)
		c.must(in.finish())
		in, err = c.input(ctx)
		c.must(err)
		c.must(in.send(inputKeepalive))
		c.must(in.send(inputStart(pid(f.pid))))
		c.must(in.send(inputData([]byte("still here"))))
		c.must(in.finish())
		c.must(c.closeStdin(ctx, pid(f.pid)))
		if f.exit(0); string(f.stdout) != "still here" {
			t.Errorf("stdout %q", f.stdout)
		}
	})
}

func TestCloseStdin(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, sh("cat; echo end; sleep 1000"))
		for range 3 {
			c.must(c.closeStdin(ctx, pid(f.pid)))
		}
		f.until("end\n")
		c.wantCode(c.sendInput(ctx, pid(f.pid), []byte("x")), connect.CodeFailedPrecondition)
		c.must(c.signal(ctx, pid(f.pid), 9))
		f.exit(-1)
		c.must(c.closeStdin(ctx, pid(f.pid))) // closed is what it is
		c.wantCode(c.sendInput(ctx, pid(f.pid), []byte("x")), connect.CodeNotFound)
	})
}

// TestCloseStdinWhileBlocked checks that the end of input does not wait behind
// a write that the program does not take.
func TestCloseStdinWhileBlocked(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, sh("echo ready; read x; sleep 0.1; wc -c"))
		f.until("ready")
		blocked := make(chan error, 1)
		go func() { blocked <- c.sendInput(ctx, pid(f.pid), bytes.Repeat([]byte("x"), 1<<20)) }()
		// sh reads byte by byte up to a newline that never comes, so what ends
		// its read is the end of input.
		select {
		case err := <-blocked:
			if err != nil {
				t.Fatalf("send: %v", err)
			}
		default:
		}
		c.must(c.closeStdin(ctx, pid(f.pid)))
		f.exit(0)
	})
}

func TestStdinAbsent(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx, no := bounded(t), false
		req := sh("readlink /proc/self/fd/0; cat; sleep 1000")
		req.Stdin = &no
		f := c.start(ctx, req)
		f.until("/dev/null\n")
		c.wantCode(c.sendInput(ctx, pid(f.pid), []byte("x")), connect.CodeFailedPrecondition)
		c.must(c.closeStdin(ctx, pid(f.pid)))
	})
}

// TestInputBlocksNobodyElse checks that a program which never reads holds up
// only who writes to it.
func TestInputBlocksNobodyElse(t *testing.T) {
	all(t, func(t *testing.T, c *call) {
		ctx := bounded(t)
		f := c.start(ctx, sh("echo ready; sleep 1000"))
		f.until("ready")
		blockedCtx, cancel := context.WithCancel(ctx)
		blocked := make(chan error, 1)
		go func() { blocked <- c.sendInput(blockedCtx, pid(f.pid), bytes.Repeat([]byte("x"), 1<<20)) }()
		if got := c.output(ctx, sh("echo meanwhile")); got != "meanwhile\n" {
			t.Errorf("got %q", got)
		}
		c.list(ctx, false)
		select {
		case err := <-blocked:
			t.Fatalf("1 MiB went into a pipe that nobody reads: %v", err)
		default:
		}
		cancel()
		if err := <-blocked; err == nil {
			t.Error("a cancelled write succeeded")
		}
		// Its turn is over: another one gets its own, and its own error.
		deadline := c.timeout(ctx, 300_000_000)
		err := c.sendInput(deadline, pid(f.pid), bytes.Repeat([]byte("y"), 1<<20))
		c.wantCode(err, connect.CodeDeadlineExceeded)
		c.must(c.signal(ctx, pid(f.pid), 9))
		if f.exit(-1); !strings.HasPrefix(f.end.Status, "signal") {
			t.Errorf("end %v", f.end)
		}
	})
}
