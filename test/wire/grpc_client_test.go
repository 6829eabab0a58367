package wire

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

// grpcCaller speaks by grpc-go. It needs no generated stubs: the methods are
// called by name.
type grpcCaller struct {
	conn *grpc.ClientConn
}

var grpcConns sync.Map // of *grpc.ClientConn by address; for the whole run

// dialGRPC answers the connection to the daemon.
func dialGRPC(d *daemon) *grpc.ClientConn {
	if c, ok := grpcConns.Load(d.addr()); ok {
		return c.(*grpc.ClientConn)
	}
	conn, err := grpc.NewClient("passthrough:///"+d.addr(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(80<<20), grpc.MaxCallSendMsgSize(80<<20)))
	if err != nil {
		panic(err) // the target is malformed
	}
	if c, loaded := grpcConns.LoadOrStore(d.addr(), conn); loaded {
		_ = conn.Close()
		return c.(*grpc.ClientConn)
	}
	return conn
}

func newGRPC(d *daemon) caller { return grpcCaller{dialGRPC(d)} }

// outgoing turns the headers of ctx into metadata.
func outgoing(ctx context.Context) context.Context {
	for name, values := range headers(ctx) {
		ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(name), values[0])
	}
	return ctx
}

// rpcErr turns a gRPC status into the error that connect-go would give. The
// numbers of the codes are the same.
func rpcErr(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	e := connect.NewError(connect.Code(st.Code()), errors.New(st.Message()))
	for _, d := range st.Details() {
		if m, ok := d.(proto.Message); ok {
			if detail, err := connect.NewErrorDetail(m); err == nil {
				e.AddDetail(detail)
			}
		}
	}
	return e
}

func (c grpcCaller) unary(ctx context.Context, method string, req, res proto.Message) error {
	return rpcErr(c.conn.Invoke(outgoing(ctx), procedure(method), req, res))
}

func (c grpcCaller) stream(ctx context.Context, method string, req proto.Message) (events, error) {
	s, cancel, err := c.open(ctx, method, req)
	if err != nil {
		return nil, err
	}
	return &grpcEvents{s: s, cancel: cancel, connects: method == methodConnect}, nil
}

// open calls a method that answers with a stream.
func (c grpcCaller) open(ctx context.Context, method string, req proto.Message) (grpc.ClientStream, context.CancelFunc, error) {
	ctx, cancel := context.WithCancel(outgoing(ctx))
	s, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, procedure(method))
	if err == nil {
		err = s.SendMsg(req)
	}
	if err == nil {
		err = s.CloseSend()
	}
	if err != nil {
		cancel()
		return nil, nil, rpcErr(err)
	}
	return s, cancel, nil
}

type grpcEvents struct {
	s        grpc.ClientStream
	cancel   context.CancelFunc
	connects bool
}

func (e *grpcEvents) next() (*pb.ProcessEvent, error) {
	if e.connects {
		m := &pb.ConnectResponse{}
		err := rpcErr(e.s.RecvMsg(m))
		return m.Event, err
	}
	m := &pb.StartResponse{}
	err := rpcErr(e.s.RecvMsg(m))
	return m.Event, err
}

func (e *grpcEvents) close() { e.cancel() }

func (c grpcCaller) input(ctx context.Context) (inputs, error) {
	s, err := c.conn.NewStream(outgoing(ctx), &grpc.StreamDesc{ClientStreams: true}, service+methodInput)
	return grpcInputs{s}, rpcErr(err)
}

type grpcInputs struct{ s grpc.ClientStream }

func (i grpcInputs) send(m *pb.StreamInputRequest) error { return rpcErr(i.s.SendMsg(m)) }

func (i grpcInputs) finish() error {
	if err := i.s.CloseSend(); err != nil {
		return rpcErr(err)
	}
	return rpcErr(i.s.RecvMsg(&pb.StreamInputResponse{}))
}
