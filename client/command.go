package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/process"
)

// reconnects is how often in a row Next tries to continue without getting a
// single event; reconnectPause lies between two tries.
const (
	reconnects     = 20
	reconnectPause = 250 * time.Millisecond
)

// ErrLost means that output was missed: the daemon keeps only so much, and the
// connection was broken for longer than that.
var ErrLost = errors.New("output was lost")

// Command follows a process. Start and Attach make it, Next reads it, Close
// lets go of it; the process goes on. It is for one goroutine; Pid, Write,
// Signal and the others are safe beside it.
type Command struct {
	c      *Client
	pid    uint32
	stream events
	offset uint64 // of the next byte of output
	ended  bool
}

// events is a stream of process events.
type events interface {
	Receive() bool
	Event() *pb.ProcessEvent
	Err() error
	Close() error
}

type startStream struct {
	*connect.ServerStreamForClient[pb.StartResponse]
}

func (s startStream) Event() *pb.ProcessEvent { return s.Msg().GetEvent() }

type connectStream struct {
	*connect.ServerStreamForClient[pb.ConnectResponse]
}

func (s connectStream) Event() *pb.ProcessEvent { return s.Msg().GetEvent() }

// Start runs a program and follows it from its first byte. A deadline of ctx
// is the program's, too.
func (c *Client) Start(ctx context.Context, req *pb.StartRequest) (*Command, error) {
	stream, err := c.Process.Start(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	return c.follow(startStream{stream}, 0)
}

// Attach follows a running process, or one that ended less than half a minute
// ago, from the given offset of its output.
func (c *Client) Attach(ctx context.Context, sel *pb.ProcessSelector, offset uint64) (*Command, error) {
	stream, err := c.Process.Connect(ctx, connect.NewRequest(&pb.ConnectRequest{Process: sel, Offset: &offset}))
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return c.follow(connectStream{stream}, offset)
}

// follow reads the start event, which comes first.
func (c *Client) follow(stream events, offset uint64) (*Command, error) {
	if !stream.Receive() {
		return nil, errors.Join(stream.Err(), stream.Close())
	}
	start := stream.Event().GetStart()
	if start == nil {
		return nil, errors.Join(fmt.Errorf("first event is %v, not the start", stream.Event()), stream.Close())
	}
	return &Command{c: c, pid: start.Pid, stream: stream, offset: offset}, nil
}

// Pid is the process id in the guest.
func (cmd *Command) Pid() uint32 { return cmd.pid }

func (cmd *Command) selector() *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: cmd.pid}}
}

// Next answers the next output or, last, the end. When the connection breaks,
// the daemon cuts a slow reader off or the guest was restored from a snapshot,
// it continues where it stopped. It returns ErrLost when that is no longer
// kept, with the event that follows, and io.EOF after the end.
func (cmd *Command) Next(ctx context.Context) (*pb.ProcessEvent, error) {
	if cmd.ended {
		return nil, io.EOF
	}
	for tries := 0; ; {
		if cmd.stream.Receive() {
			tries = 0
			switch e := cmd.stream.Event(); event := e.GetEvent().(type) {
			case *pb.ProcessEvent_Data:
				cmd.offset = event.Data.GetOffset() + uint64(len(Output(event.Data)))
				return e, nil
			case *pb.ProcessEvent_End:
				cmd.ended = true
				return e, nil
			case *pb.ProcessEvent_Gap_:
				cmd.offset = event.Gap.To
				return e, fmt.Errorf("%w: bytes %d to %d", ErrLost, event.Gap.From, event.Gap.To)
			}
			continue // a start or a keepalive
		}
		err := cmd.stream.Err()
		if err == nil {
			err = errors.New("stream ended without the end of the process")
		}
		for err != nil {
			if tries++; tries > reconnects || !worthRetrying(err) || ctx.Err() != nil {
				return nil, fmt.Errorf("follow process %d: %w", cmd.pid, err)
			}
			err = cmd.reconnect(ctx, tries)
		}
	}
}

// worthRetrying tells broken connections from answers. What the caller did not
// cancel, a connection that was reset did.
func worthRetrying(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeAborted, connect.CodeUnavailable, connect.CodeUnknown, connect.CodeInternal, connect.CodeCanceled:
		return true
	default:
		return false
	}
}

func (cmd *Command) reconnect(ctx context.Context, try int) error {
	_ = cmd.stream.Close() // broken already
	if try > 1 {
		select {
		case <-time.After(reconnectPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	offset := cmd.offset
	stream, err := cmd.c.Process.Connect(ctx, connect.NewRequest(
		&pb.ConnectRequest{Process: cmd.selector(), Offset: &offset}))
	if err != nil {
		return fmt.Errorf("continue process %d at %d: %w", cmd.pid, offset, err)
	}
	cmd.stream = connectStream{stream}
	return nil
}

// Output answers the bytes of a data event, whichever stream they are of.
func Output(d *pb.ProcessEvent_DataEvent) []byte {
	switch out := d.GetOutput().(type) {
	case *pb.ProcessEvent_DataEvent_Stdout:
		return out.Stdout
	case *pb.ProcessEvent_DataEvent_Stderr:
		return out.Stderr
	case *pb.ProcessEvent_DataEvent_Pty:
		return out.Pty
	}
	return nil
}

// Write sends input: to the terminal when the process has one, else to stdin.
func (cmd *Command) Write(ctx context.Context, terminal bool, b []byte) error {
	in := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: b}}
	if terminal {
		in.Input = &pb.ProcessInput_Pty{Pty: b}
	}
	_, err := cmd.c.Process.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: cmd.selector(), Input: in}))
	if err != nil {
		return fmt.Errorf("send input: %w", err)
	}
	return nil
}

// CloseStdin ends standard input.
func (cmd *Command) CloseStdin(ctx context.Context) error {
	_, err := cmd.c.Process.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: cmd.selector()}))
	if err != nil {
		return fmt.Errorf("close stdin: %w", err)
	}
	return nil
}

// Signal sends the POSIX signal of that number; 9 takes the whole tree.
func (cmd *Command) Signal(ctx context.Context, number int32) error {
	_, err := cmd.c.Process.SendSignal(ctx, connect.NewRequest(
		&pb.SendSignalRequest{Process: cmd.selector(), Signal: pb.Signal(number)}))
	if err != nil {
		return fmt.Errorf("send signal %d: %w", number, err)
	}
	return nil
}

// Resize changes the size of the terminal.
func (cmd *Command) Resize(ctx context.Context, cols, rows uint32) error {
	_, err := cmd.c.Process.Update(ctx, connect.NewRequest(&pb.UpdateRequest{
		Process: cmd.selector(), Pty: &pb.PTY{Size: &pb.PTY_Size{Cols: cols, Rows: rows}},
	}))
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Close lets go of the stream. The process goes on unless it has ended.
func (cmd *Command) Close() error {
	if err := cmd.stream.Close(); err != nil && !cmd.ended {
		return fmt.Errorf("close stream: %w", err)
	}
	return nil
}
