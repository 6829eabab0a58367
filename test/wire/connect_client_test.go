package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/gen/process/processconnect"
)

func http1() *http.Client { return transport(false) }
func http2() *http.Client { return transport(true) }

func transport(h2 bool) *http.Client {
	p := new(http.Protocols)
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	return &http.Client{Transport: &http.Transport{Protocols: p}}
}

// connectCaller speaks by connect-go, in whichever protocol.
type connectCaller struct {
	c     processconnect.ProcessClient
	files filesystemconnect.FilesystemClient
}

func newConnect(d *daemon, hc *http.Client, opts ...connect.ClientOption) caller {
	opts = append(opts, connect.WithInterceptors(copyHeaders{}))
	return connectCaller{
		processconnect.NewProcessClient(hc, d.base, opts...),
		filesystemconnect.NewFilesystemClient(hc, d.base, opts...),
	}
}

func (c connectCaller) unary(ctx context.Context, method string, req, res proto.Message) error {
	switch req := req.(type) {
	case *pb.ListRequest:
		return do(ctx, c.c.List, req, res)
	case *pb.UpdateRequest:
		return do(ctx, c.c.Update, req, res)
	case *pb.SendInputRequest:
		return do(ctx, c.c.SendInput, req, res)
	case *pb.SendSignalRequest:
		return do(ctx, c.c.SendSignal, req, res)
	case *pb.CloseStdinRequest:
		return do(ctx, c.c.CloseStdin, req, res)
	default:
		return c.unaryFiles(ctx, method, req, res)
	}
}

func do[Req, Res any](ctx context.Context, f func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req, res proto.Message) error {
	r, err := f(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	proto.Merge(res, any(r.Msg).(proto.Message))
	return nil
}

func (c connectCaller) stream(ctx context.Context, method string, req proto.Message) (events, error) {
	ctx, cancel := context.WithCancel(ctx)
	switch req := req.(type) {
	case *pb.StartRequest:
		s, err := c.c.Start(ctx, connect.NewRequest(req))
		return connectEvents[pb.StartResponse]{s, cancel}, err
	case *pb.ConnectRequest:
		s, err := c.c.Connect(ctx, connect.NewRequest(req))
		return connectEvents[pb.ConnectResponse]{s, cancel}, err
	default:
		cancel()
		return nil, fmt.Errorf("no method %s", method)
	}
}

type connectEvents[T any] struct {
	s      *connect.ServerStreamForClient[T]
	cancel context.CancelFunc
}

func (e connectEvents[T]) next() (*pb.ProcessEvent, error) {
	if !e.s.Receive() {
		if err := e.s.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
	return any(e.s.Msg()).(interface{ GetEvent() *pb.ProcessEvent }).GetEvent(), nil
}

// close drops the stream without reading the rest.
func (e connectEvents[T]) close() {
	e.cancel()
	_ = e.s.Close()
}

func (c connectCaller) input(ctx context.Context) (inputs, error) {
	return connectInputs{c.c.StreamInput(ctx)}, nil
}

type connectInputs struct {
	s *connect.ClientStreamForClient[pb.StreamInputRequest, pb.StreamInputResponse]
}

func (i connectInputs) send(m *pb.StreamInputRequest) error {
	if err := i.s.Send(m); errors.Is(err, io.EOF) {
		return io.EOF
	} else if err != nil {
		return err
	}
	return nil
}

func (i connectInputs) finish() error {
	_, err := i.s.CloseAndReceive()
	return err
}

// copyHeaders puts the context's headers on requests.
type copyHeaders struct{}

func (copyHeaders) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		set(ctx, req.Header())
		return next(ctx, req)
	}
}

func (copyHeaders) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		set(ctx, conn.RequestHeader())
		return conn
	}
}

func (copyHeaders) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func set(ctx context.Context, h http.Header) {
	for name, values := range headers(ctx) {
		h[name] = values
	}
}
