package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	fs "github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
)

// Methods of the filesystem service.
const (
	methodStat          = filesystemconnect.FilesystemStatProcedure
	methodMakeDir       = filesystemconnect.FilesystemMakeDirProcedure
	methodMove          = filesystemconnect.FilesystemMoveProcedure
	methodListDir       = filesystemconnect.FilesystemListDirProcedure
	methodRemove        = filesystemconnect.FilesystemRemoveProcedure
	methodWatchDir      = filesystemconnect.FilesystemWatchDirProcedure
	methodCreateWatcher = filesystemconnect.FilesystemCreateWatcherProcedure
	methodWatcherEvents = filesystemconnect.FilesystemGetWatcherEventsProcedure
	methodRemoveWatcher = filesystemconnect.FilesystemRemoveWatcherProcedure
)

func (c connectCaller) unaryFiles(ctx context.Context, method string, req, res proto.Message) error {
	switch req := req.(type) {
	case *fs.StatRequest:
		return do(ctx, c.files.Stat, req, res)
	case *fs.MakeDirRequest:
		return do(ctx, c.files.MakeDir, req, res)
	case *fs.MoveRequest:
		return do(ctx, c.files.Move, req, res)
	case *fs.ListDirRequest:
		return do(ctx, c.files.ListDir, req, res)
	case *fs.RemoveRequest:
		return do(ctx, c.files.Remove, req, res)
	case *fs.CreateWatcherRequest:
		return do(ctx, c.files.CreateWatcher, req, res)
	case *fs.GetWatcherEventsRequest:
		return do(ctx, c.files.GetWatcherEvents, req, res)
	case *fs.RemoveWatcherRequest:
		return do(ctx, c.files.RemoveWatcher, req, res)
	default:
		return fmt.Errorf("no method %s", method)
	}
}

func (c connectCaller) watch(ctx context.Context, req *fs.WatchDirRequest) (changes, error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.files.WatchDir(ctx, connect.NewRequest(req))
	if err != nil {
		cancel()
		return nil, err
	}
	return connectChanges{s, cancel}, nil
}

type connectChanges struct {
	s      *connect.ServerStreamForClient[fs.WatchDirResponse]
	cancel context.CancelFunc
}

func (e connectChanges) next() (*fs.WatchDirResponse, error) {
	if !e.s.Receive() {
		return nil, cmpOr(e.s.Err(), io.EOF)
	}
	return e.s.Msg(), nil
}

func (e connectChanges) close() {
	e.cancel()
	_ = e.s.Close()
}

func cmpOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func (c grpcCaller) watch(ctx context.Context, req *fs.WatchDirRequest) (changes, error) {
	s, cancel, err := c.open(ctx, methodWatchDir, req)
	if err != nil {
		return nil, err
	}
	return grpcChanges{s, cancel}, nil
}

type grpcChanges struct {
	s      grpc.ClientStream
	cancel context.CancelFunc
}

func (e grpcChanges) next() (*fs.WatchDirResponse, error) {
	m := &fs.WatchDirResponse{}
	err := rpcErr(e.s.RecvMsg(m))
	return m, err
}

func (e grpcChanges) close() { e.cancel() }

func (c *rawCaller) watch(ctx context.Context, req *fs.WatchDirRequest) (changes, error) {
	s, err := c.open(ctx, methodWatchDir, req)
	if err != nil {
		return nil, err
	}
	return rawChanges{s}, nil
}

type rawChanges struct{ *rawStream }

func (e rawChanges) next() (*fs.WatchDirResponse, error) {
	text, err := e.message()
	if err != nil {
		return nil, err
	}
	m := &fs.WatchDirResponse{}
	return m, protojson.Unmarshal(text, m)
}

// stat, and the ones below, make one call.
func (c *call) stat(ctx context.Context, path string) (*fs.EntryInfo, error) {
	res := &fs.StatResponse{}
	err := c.unary(ctx, methodStat, &fs.StatRequest{Path: path}, res)
	return res.Entry, err
}

func (c *call) makeDir(ctx context.Context, path string) (*fs.EntryInfo, error) {
	res := &fs.MakeDirResponse{}
	err := c.unary(ctx, methodMakeDir, &fs.MakeDirRequest{Path: path}, res)
	return res.Entry, err
}

func (c *call) move(ctx context.Context, source, destination string) (*fs.EntryInfo, error) {
	res := &fs.MoveResponse{}
	err := c.unary(ctx, methodMove, &fs.MoveRequest{Source: source, Destination: destination}, res)
	return res.Entry, err
}

func (c *call) listDir(ctx context.Context, path string, depth uint32) ([]*fs.EntryInfo, error) {
	res := &fs.ListDirResponse{}
	err := c.unary(ctx, methodListDir, &fs.ListDirRequest{Path: path, Depth: depth}, res)
	return res.Entries, err
}

func (c *call) remove(ctx context.Context, path string) error {
	return c.unary(ctx, methodRemove, &fs.RemoveRequest{Path: path}, &fs.RemoveResponse{})
}

// watching is a watch being read by a test. It checks that the start is first.
type watching struct {
	t          *testing.T
	s          changes
	keepalives int
	err        error // how the stream ended
}

func (c *call) tryWatch(ctx context.Context, req *fs.WatchDirRequest) (*watching, error) {
	s, err := c.watch(ctx, req)
	if err != nil {
		return nil, err
	}
	first, err := s.next()
	if err != nil {
		s.close()
		return nil, err
	}
	if first.GetStart() == nil {
		s.close()
		return nil, fmt.Errorf("first event is %v, not a start", first)
	}
	c.t.Cleanup(s.close)
	return &watching{t: c.t, s: s}, nil
}

func (c *call) watchDir(ctx context.Context, req *fs.WatchDirRequest) *watching {
	c.t.Helper()
	w, err := c.tryWatch(ctx, req)
	if err != nil {
		c.t.Fatalf("watch: %v", err)
	}
	return w
}

// read answers the next event about a file, nil at the end of the stream.
func (w *watching) read() *fs.FilesystemEvent {
	w.t.Helper()
	for {
		m, err := w.s.next()
		if err != nil {
			w.err = err
			return nil
		}
		switch e := m.Event.(type) {
		case *fs.WatchDirResponse_Keepalive:
			w.keepalives++
		case *fs.WatchDirResponse_Filesystem:
			return e.Filesystem
		default:
			w.t.Fatalf("unexpected event %v", m)
		}
	}
}

// word is an event in one word or three.
func word(e *fs.FilesystemEvent) string {
	kind := map[fs.EventType]string{
		fs.EventType_EVENT_TYPE_CREATE: "CREATE", fs.EventType_EVENT_TYPE_WRITE: "WRITE",
		fs.EventType_EVENT_TYPE_REMOVE: "REMOVE", fs.EventType_EVENT_TYPE_RENAME: "RENAME",
		fs.EventType_EVENT_TYPE_CHMOD: "CHMOD",
	}[e.Type]
	if e.From != nil {
		return kind + " " + e.Name + " from " + e.GetFrom()
	}
	return kind + " " + e.Name
}

// want reads events and compares them.
func (w *watching) want(events ...string) {
	w.t.Helper()
	for _, want := range events {
		e := w.read()
		if e == nil {
			w.t.Fatalf("stream ended (%v) before %q", w.err, want)
		}
		if got := word(e); got != want {
			w.t.Fatalf("got %q, expected %q", got, want)
		}
	}
}

// wantEnd reads the end and checks its code.
func (w *watching) wantEnd(code connect.Code) {
	w.t.Helper()
	if e := w.read(); e != nil {
		w.t.Fatalf("event %v instead of the end", e)
	}
	if errors.Is(w.err, io.EOF) || connect.CodeOf(w.err) != code {
		w.t.Fatalf("stream ended %v, expected code %v", w.err, code)
	}
}
