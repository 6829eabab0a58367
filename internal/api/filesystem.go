package api

import (
	"context"
	"encoding/binary"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	"github.com/wrenn/envd/internal/filesystem"
)

// filesystemService is the RPC service filesystem.Filesystem.
type filesystemService struct{ Config }

var _ filesystemconnect.FilesystemHandler = (*filesystemService)(nil)

// newFilesystemHandler is the service for every protocol. gRPC takes a call
// with one answer and one with a stream of answers alike, and a stream leaves
// the envelope of ListDir's answer to us.
func newFilesystemHandler(s *filesystemService, opts ...connect.HandlerOption) (string, http.Handler) {
	path, service := filesystemconnect.NewFilesystemHandler(s, opts...)
	list := connect.NewServerStreamHandler(filesystemconnect.FilesystemListDirProcedure, s.listStream, opts...)
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == filesystemconnect.FilesystemListDirProcedure &&
			strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			list.ServeHTTP(w, r)
			return
		}
		service.ServeHTTP(w, r)
	})
}

func (s *filesystemService) viewOf(ctx context.Context) *filesystem.View {
	return s.view(account(ctx))
}

func (s *filesystemService) Stat(ctx context.Context, req *connect.Request[pb.StatRequest]) (*connect.Response[pb.StatResponse], error) {
	e, err := s.viewOf(ctx).Stat(req.Msg.Path)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.StatResponse{Entry: entryMessage(&e)}), nil
}

func (s *filesystemService) MakeDir(ctx context.Context, req *connect.Request[pb.MakeDirRequest]) (*connect.Response[pb.MakeDirResponse], error) {
	e, err := s.viewOf(ctx).MakeDir(req.Msg.Path)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.MakeDirResponse{Entry: entryMessage(&e)}), nil
}

func (s *filesystemService) Move(ctx context.Context, req *connect.Request[pb.MoveRequest]) (*connect.Response[pb.MoveResponse], error) {
	e, err := s.viewOf(ctx).Move(req.Msg.Source, req.Msg.Destination)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.MoveResponse{Entry: entryMessage(&e)}), nil
}

func (s *filesystemService) Remove(ctx context.Context, req *connect.Request[pb.RemoveRequest]) (*connect.Response[pb.RemoveResponse], error) {
	if err := s.viewOf(ctx).Remove(req.Msg.Path); err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.RemoveResponse{}), nil
}

// ListDir is called in the Connect protocol. Its answer is the bare message,
// which goes out while it is made.
func (s *filesystemService) ListDir(ctx context.Context, req *connect.Request[pb.ListDirRequest]) (*connect.Response[pb.ListDirResponse], error) {
	out := batchFrom(ctx)
	enc := entryEncoder{json: isJSON(req.Header())}
	err := s.threads.within(ctx, s.asUser(account(ctx)), func() error {
		return s.viewOf(ctx).List(req.Msg.Path, req.Msg.Depth, func(e filesystem.Entry) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return out.gather(func(buf []byte) []byte { return enc.append(buf, &e) })
		})
	})
	switch {
	case err == nil:
		// What connect-go makes of the empty message is not wanted any more.
		_ = out.gather(enc.end) // the client is gone: nothing to tell
		out.complete()
		return connect.NewResponse(&pb.ListDirResponse{}), nil
	case !out.takeBack():
		// Whole or an error: too late for another than a broken answer.
		panic(http.ErrAbortHandler)
	default:
		return nil, rpcError(err)
	}
}

// listStream is ListDir in gRPC and gRPC-Web, which want to know how long the
// message is before it begins.
func (s *filesystemService) listStream(ctx context.Context, req *connect.Request[pb.ListDirRequest], stream *connect.ServerStream[pb.ListDirResponse]) error {
	enc := entryEncoder{json: isJSON(req.Header())}
	parts := [][]byte{nil}
	err := s.viewOf(ctx).List(req.Msg.Path, req.Msg.Depth, func(e filesystem.Entry) error {
		last := len(parts) - 1
		parts[last] = enc.append(parts[last], &e)
		if len(parts[last]) >= flushAt {
			// Another part instead of a copy of this one.
			parts = append(parts, make([]byte, 0, flushAt+flushAt/8))
		}
		return ctx.Err()
	})
	if err != nil {
		return rpcError(err)
	}
	parts = append(parts, enc.end(nil))
	out := batchFrom(ctx)
	out.hold()
	if err := stream.Send(nil); err != nil { // the headers
		return err
	}
	if err := out.gather(func(buf []byte) []byte { return appendEnvelope(buf, parts) }); err != nil {
		return err
	}
	for _, part := range parts {
		if _, err := out.Write(part); err != nil {
			return err
		}
	}
	return out.release()
}

// appendEnvelope appends what precedes a message that consists of parts.
func appendEnvelope(dst []byte, parts [][]byte) []byte {
	size := 0
	for _, part := range parts {
		size += len(part)
	}
	dst = append(dst, 0)
	return binary.BigEndian.AppendUint32(dst, uint32(size))
}
