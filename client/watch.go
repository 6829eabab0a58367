package client

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	fs "github.com/wrenn/envd/gen/filesystem"
)

// Watch is a stream of what changes in a directory. Client.Watch makes it, Next
// reads it, Close ends it. It is for one goroutine; Close may be called beside.
//
// It does not continue over a broken connection: what happened meanwhile would
// be missing, and nobody would know.
type Watch struct {
	stream *connect.ServerStreamForClient[fs.WatchDirResponse]
	cancel context.CancelFunc
}

// Watch returns once everything is watched: no later change is missed. It ends
// with ctx at the latest.
func (c *Client) Watch(ctx context.Context, req *fs.WatchDirRequest) (*Watch, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.Filesystem.WatchDir(ctx, connect.NewRequest(req))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch: %w", err)
	}
	w := &Watch{stream: stream, cancel: cancel}
	if !stream.Receive() {
		return nil, errors.Join(w.end(), w.Close())
	}
	if start := stream.Msg().GetStart(); start == nil {
		return nil, errors.Join(fmt.Errorf("first event is %v, not the start", stream.Msg()), w.Close())
	}
	return w, nil
}

// Next waits for the next change. Its error is the end of the watch: code
// not_found after the directory is gone, data_loss when changes were missed.
func (w *Watch) Next() (*fs.FilesystemEvent, error) {
	for w.stream.Receive() {
		if e := w.stream.Msg().GetFilesystem(); e != nil {
			return e, nil
		} // else a keepalive
	}
	return nil, w.end()
}

func (w *Watch) end() error {
	if err := w.stream.Err(); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	return errors.New("watch: stream ended without a reason")
}

// Close ends the watch.
func (w *Watch) Close() error {
	w.cancel() // or Close would wait for the stream's end
	_ = w.stream.Close()
	return nil
}
