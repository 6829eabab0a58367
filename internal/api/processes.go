package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/gen/process/processconnect"
	"github.com/wrenn/envd/internal/filesystem"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/process"
)

// processService is the RPC service process.Process.
type processService struct{ Config }

var _ processconnect.ProcessHandler = (*processService)(nil)

func (s *processService) List(_ context.Context, req *connect.Request[pb.ListRequest]) (*connect.Response[pb.ListResponse], error) {
	res := &pb.ListResponse{}
	for _, p := range s.Processes.List(req.Msg.IncludeExited) {
		res.Processes = append(res.Processes, processMessage(p))
	}
	return connect.NewResponse(res), nil
}

func (s *processService) Start(ctx context.Context, req *connect.Request[pb.StartRequest], stream *connect.ServerStream[pb.StartResponse]) error {
	spec, err := NewSpec(req.Msg, account(ctx), s.Settings.Load())
	if err != nil {
		return rpcError(err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		spec.Timeout = max(time.Until(deadline), time.Nanosecond)
	}
	p, cursor, err := s.start(ctx, spec)
	if err != nil {
		return rpcError(err)
	}
	defer cursor.Close()
	s.Log.DebugContext(ctx, "process started", "pid", p.Pid(), "command", spec.Name, "user", account(ctx).Name, "tag", p.Tag)
	f := follower{
		p: p, cursor: cursor, keepalive: keepalive(req.Header()), timeout: true,
		frames: framerFor(req.Header().Get("Content-Type")),
		send:   func(e *pb.ProcessEvent) error { return stream.Send(&pb.StartResponse{Event: e}) },
	}
	if err = f.run(ctx); spec.Timeout > 0 && errors.Is(err, context.DeadlineExceeded) {
		p.AwaitTimeout() // who is told of it finds nothing left
	}
	return rpcError(err)
}

func (s *processService) Connect(ctx context.Context, req *connect.Request[pb.ConnectRequest], stream *connect.ServerStream[pb.ConnectResponse]) error {
	p, err := s.find(req.Msg.Process)
	if err != nil {
		return rpcError(err)
	}
	offset, wanted := process.Now, req.Msg.Offset != nil
	if wanted {
		offset = int64(min(req.Msg.GetOffset(), math.MaxInt64))
	}
	cursor, err := p.Attach(offset)
	if err != nil {
		return rpcError(err)
	}
	defer cursor.Close()
	f := follower{
		p: p, cursor: cursor, keepalive: keepalive(req.Header()), gaps: wanted,
		frames: framerFor(req.Header().Get("Content-Type")),
		send:   func(e *pb.ProcessEvent) error { return stream.Send(&pb.ConnectResponse{Event: e}) },
	}
	return rpcError(f.run(ctx))
}

func (s *processService) Update(_ context.Context, req *connect.Request[pb.UpdateRequest]) (*connect.Response[pb.UpdateResponse], error) {
	p, err := s.find(req.Msg.Process)
	if err != nil {
		return nil, rpcError(err)
	}
	if req.Msg.Pty != nil {
		size, err := terminalSize(req.Msg.Pty)
		if err != nil {
			return nil, err
		}
		if err := p.Resize(*size); err != nil {
			return nil, rpcError(err)
		}
	}
	return connect.NewResponse(&pb.UpdateResponse{}), nil
}

func (s *processService) StreamInput(ctx context.Context, stream *connect.ClientStream[pb.StreamInputRequest]) (*connect.Response[pb.StreamInputResponse], error) {
	var p *process.Process
	for stream.Receive() {
		var err error
		switch event := stream.Msg().Event.(type) {
		case *pb.StreamInputRequest_Start:
			p, err = s.find(event.Start.GetProcess())
		case *pb.StreamInputRequest_Data:
			if p == nil {
				return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("stream input: data before start"))
			}
			err = write(ctx, p, event.Data.GetInput())
		case *pb.StreamInputRequest_Keepalive:
		default:
			err = invalid("stream input: message without an event")
		}
		if err != nil {
			return nil, rpcError(err)
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.StreamInputResponse{}), nil
}

func (s *processService) SendInput(ctx context.Context, req *connect.Request[pb.SendInputRequest]) (*connect.Response[pb.SendInputResponse], error) {
	p, err := s.find(req.Msg.Process)
	if err == nil {
		err = write(ctx, p, req.Msg.Input)
	}
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.SendInputResponse{}), nil
}

func write(ctx context.Context, p *process.Process, in *pb.ProcessInput) error {
	switch in := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		return p.WriteStdin(ctx, in.Stdin)
	case *pb.ProcessInput_Pty:
		return p.WriteTerminal(ctx, in.Pty)
	default:
		return invalid("input is neither stdin nor pty")
	}
}

func (s *processService) SendSignal(_ context.Context, req *connect.Request[pb.SendSignalRequest]) (*connect.Response[pb.SendSignalResponse], error) {
	sig := unix.Signal(req.Msg.Signal)
	if sig < 1 || sig > 31 {
		return nil, invalid("signal must be a number from 1 to 31")
	}
	p, err := s.find(req.Msg.Process)
	if err == nil {
		err = p.Signal(sig)
	}
	if err != nil {
		return nil, rpcError(err)
	}
	if ms := req.Msg.KillAfterMs; ms > 0 {
		p.KillAfter(time.Duration(ms) * time.Millisecond)
	}
	return connect.NewResponse(&pb.SendSignalResponse{}), nil
}

func (s *processService) CloseStdin(_ context.Context, req *connect.Request[pb.CloseStdinRequest]) (*connect.Response[pb.CloseStdinResponse], error) {
	p, err := s.find(req.Msg.Process)
	if err == nil {
		err = p.CloseStdin()
	}
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.CloseStdinResponse{}), nil
}

func (s *processService) find(sel *pb.ProcessSelector) (*process.Process, error) {
	switch by := sel.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		return s.Processes.ByPid(int(by.Pid))
	case *pb.ProcessSelector_Tag:
		return s.Processes.ByTag(by.Tag)
	default:
		return nil, invalid("process selector is empty: give a pid or a tag")
	}
}

// NewSpec turns a request into what to run, with every default applied.
func NewSpec(req *pb.StartRequest, acct guest.Account, settings *guest.Settings) (*process.Spec, error) {
	if req.Process == nil {
		return nil, invalid("no process configuration")
	}
	spec := &process.Spec{
		Name:  req.Process.Cmd,
		Args:  req.Process.Args,
		User:  process.Credential{UID: acct.UID, GID: acct.GID, Groups: acct.Groups},
		Stdin: req.Stdin == nil || *req.Stdin,
		Tag:   req.GetTag(), HasTag: req.Tag != nil,
		Limits: process.Limits{
			MemoryBytes:   req.Limits.GetMemoryMaxBytes(),
			CPUMillicores: req.Limits.GetCpuMaxMillicores(),
			Pids:          req.Limits.GetPidsMax(),
		},
		Label: req.Process, LabelCost: proto.Size(req.Process),
	}
	var err error
	if req.Pty != nil {
		if spec.Terminal, err = terminalSize(req.Pty); err != nil {
			return nil, err
		}
	}
	if spec.Dir, err = workdir(req.Process.Cwd, acct, settings); err != nil {
		return nil, err
	}
	for name := range req.Process.Envs {
		if name == "" || strings.Contains(name, "=") {
			return nil, invalid(fmt.Sprintf("environment variable name %q is empty or contains =", name))
		}
	}
	spec.Env = environment(acct, settings, req.Process.Envs, spec.Terminal != nil)
	return spec, nil
}

// terminalSize reads a size; the kernel counts in 16 bits. Zeroes are what
// clients without a window send.
func terminalSize(pty *pb.PTY) (*process.Size, error) {
	cols, rows := pty.GetSize().GetCols(), pty.GetSize().GetRows()
	if cols > math.MaxUint16 || rows > math.MaxUint16 {
		return nil, invalid("terminal size is beyond 65535")
	}
	return &process.Size{Cols: uint16(cols), Rows: uint16(rows)}, nil
}

// workdir finds the working directory. Only a home that nobody asked for may
// be missing; then it is /.
func workdir(cwd *string, acct guest.Account, settings *guest.Settings) (string, error) {
	path := ""
	if cwd != nil {
		path = *cwd
	}
	user := filesystem.User{Home: acct.Home, Workdir: settings.Workdir}
	dir, err := user.Resolve(path)
	if err != nil {
		return "", err
	}
	if path == "" && settings.Workdir == "" {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			return dir, nil
		}
		return "/", nil
	}
	return dir, nil
}
