package api

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/internal/filesystem"
	"github.com/wrenn/envd/internal/watch"
)

// eventsPerFlush bounds the events that go out under one flush: more gain
// nothing, and their entries are looked at before the flush.
const eventsPerFlush = 256

// Watchers are the polled watchers of all clients.
type Watchers = watch.Set[*Watched]

// Watched is how to report the events of a watch: with whose eyes to look at
// the entries, if any are wanted.
type Watched struct {
	view  *filesystem.View
	root  string // the watched directory's path, as clients know it
	entry bool
}

// watchRequest is what WatchDir and CreateWatcher are asked for.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// prepareWatch reads a request. The watch is opened, and follows directories
// made later, with the reach of the user and by the links that its view follows.
func (s *filesystemService) prepareWatch(ctx context.Context, req watchRequest) (*Watched, watch.Options, error) {
	view := s.viewOf(ctx)
	root, err := view.User.Resolve(req.GetPath())
	if err != nil {
		return nil, watch.Options{}, err
	}
	return &Watched{view: view, root: root, entry: req.GetIncludeEntry()}, watch.Options{
		Recursive: req.GetRecursive(), AllowNetwork: req.GetAllowNetworkMounts(),
		Do: view.Do, OpenAt: view.OpenAt,
	}, nil
}

var watchStart = &pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}

var watchKeepAlive = &pb.WatchDirResponse{Event: &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}}

// WatchDir sends what changes as it comes. A client that does not read blocks
// this handler alone: the kernel's queue, and with it what is kept for the
// client, is bounded, and when it is full the stream ends with an error.
func (s *filesystemService) WatchDir(ctx context.Context, req *connect.Request[pb.WatchDirRequest], stream *connect.ServerStream[pb.WatchDirResponse]) error {
	what, opts, err := s.prepareWatch(ctx, req.Msg)
	if err != nil {
		return rpcError(err)
	}
	w, err := watch.Open(what.root, opts)
	if err != nil {
		return rpcError(err)
	}
	defer w.Close()
	if err := stream.Send(watchStart); err != nil {
		return err
	}
	interval := keepalive(req.Header())
	for {
		events, err := awaitEvents(ctx, w, interval)
		if errors.Is(err, errQuiet) {
			err = stream.Send(watchKeepAlive)
		}
		if err != nil {
			return rpcError(err)
		}
		if err := what.send(batchFrom(ctx), stream, events); err != nil {
			return err
		}
	}
}

// errQuiet means that nothing happened for a while.
var errQuiet = errors.New("nothing happened")

// awaitEvents waits for events, for the end of ctx or for errQuiet.
func awaitEvents(ctx context.Context, w *watch.Watcher, quiet time.Duration) ([]watch.Event, error) {
	waiting, cancel := context.WithTimeoutCause(ctx, quiet, errQuiet)
	defer cancel()
	events, err := w.Next(waiting)
	if err != nil && waiting.Err() != nil && errors.Is(err, waiting.Err()) {
		return nil, context.Cause(waiting)
	}
	return events, err
}

// send sends events, as many under one flush as are there.
func (w *Watched) send(out *batch, stream *connect.ServerStream[pb.WatchDirResponse], events []watch.Event) error {
	for len(events) > 0 {
		n := min(len(events), eventsPerFlush)
		out.hold()
		for _, m := range w.messages(events[:n]) {
			if err := stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Filesystem{Filesystem: m}}); err != nil {
				return err
			}
		}
		if err := out.release(); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// eventTypes are the wire's, and whether an entry comes with them: of what was
// removed or has another name now there is none.
var eventTypes = map[watch.Kind]struct {
	number pb.EventType
	entry  bool
}{
	watch.Create: {pb.EventType_EVENT_TYPE_CREATE, true},
	watch.Write:  {pb.EventType_EVENT_TYPE_WRITE, true},
	watch.Remove: {pb.EventType_EVENT_TYPE_REMOVE, false},
	watch.Rename: {pb.EventType_EVENT_TYPE_RENAME, false},
	watch.Chmod:  {pb.EventType_EVENT_TYPE_CHMOD, true},
}

// messages are events as clients get them. Entries are as they are now; one
// that is gone by now has none.
func (w *Watched) messages(events []watch.Event) []*pb.FilesystemEvent {
	messages := make([]*pb.FilesystemEvent, len(events))
	for i, e := range events {
		messages[i] = &pb.FilesystemEvent{Name: text(e.Name), Type: eventTypes[e.Kind].number}
		if e.From != "" {
			messages[i].From = proto.String(text(e.From))
		}
	}
	if !w.entry {
		return messages
	}
	// One switch of the user for all. Where it fails, there are no entries.
	_ = w.view.Do(func() error {
		for i, e := range events {
			if !eventTypes[e.Kind].entry {
				continue
			}
			if entry, err := w.view.Stat(filepath.Join(w.root, e.Name)); err == nil {
				messages[i].Entry = entryMessage(&entry)
			}
		}
		return nil
	})
	return messages
}

func (s *filesystemService) CreateWatcher(ctx context.Context, req *connect.Request[pb.CreateWatcherRequest]) (*connect.Response[pb.CreateWatcherResponse], error) {
	what, opts, err := s.prepareWatch(ctx, req.Msg)
	if err != nil {
		return nil, rpcError(err)
	}
	id, err := s.Watchers.Create(what.root, opts, what)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.CreateWatcherResponse{WatcherId: id}), nil
}

// GetWatcherEvents answers what happened since it was called last. Once all of
// that is told, the end of a watch is an error, and its id is gone.
func (s *filesystemService) GetWatcherEvents(_ context.Context, req *connect.Request[pb.GetWatcherEventsRequest]) (*connect.Response[pb.GetWatcherEventsResponse], error) {
	what, events, err := s.Watchers.Events(req.Msg.WatcherId)
	if err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.GetWatcherEventsResponse{Events: what.messages(events)}), nil
}

func (s *filesystemService) RemoveWatcher(_ context.Context, req *connect.Request[pb.RemoveWatcherRequest]) (*connect.Response[pb.RemoveWatcherResponse], error) {
	if err := s.Watchers.Remove(req.Msg.WatcherId); err != nil {
		return nil, rpcError(err)
	}
	return connect.NewResponse(&pb.RemoveWatcherResponse{}), nil
}
