package main

import (
	"context"
	"fmt"
	"net/http"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/gen/process/processconnect"
)

// streams is a crowd on one h2c connection. The client here costs what it
// costs: only the daemon's memory is measured.
type streams struct {
	addr      string
	n         int
	transport *http.Transport
	cancel    context.CancelFunc
	open      []*connect.ServerStreamForClient[pb.StartResponse]
	pids      []int
}

func (ss *streams) start() error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	ss.transport = &http.Transport{Protocols: protocols}
	ctx, cancel := context.WithCancel(context.Background())
	ss.cancel = cancel
	api := processconnect.NewProcessClient(&http.Client{Transport: ss.transport}, "http://"+ss.addr)
	for range ss.n {
		s, err := api.Start(ctx, connect.NewRequest(command("/bin/sleep", "1000")))
		if err != nil {
			return fmt.Errorf("start over h2c: %w", err)
		}
		ss.open = append(ss.open, s)
		if !s.Receive() {
			return fmt.Errorf("start over h2c: %w", s.Err())
		}
		ss.pids = append(ss.pids, int(s.Msg().GetEvent().GetStart().GetPid()))
	}
	return nil
}

func (ss *streams) end() error {
	if err := endAll(ss.addr, ss.pids); err != nil {
		return err
	}
	for _, s := range ss.open {
		ended := false
		for s.Receive() {
			ended = ended || s.Msg().GetEvent().GetEnd() != nil
		}
		if err := s.Err(); err != nil || !ended {
			return fmt.Errorf("stream over h2c ended without an end: %w", err)
		}
	}
	return nil
}

func (ss *streams) close() {
	if ss.cancel == nil {
		return
	}
	ss.cancel()
	for _, s := range ss.open {
		_ = s.Close()
	}
	ss.transport.CloseIdleConnections()
}
