// Package server accepts connections and serves HTTP on them: HTTP/1.1 and
// HTTP/2 cleartext with prior knowledge, on one port.
//
// A Server owns its listener and every connection. It sets the limits that
// belong to connections, not to requests: the time for request headers, idle
// time, dead peers. It knows no endpoint: the handler is package api's.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/wrenn/envd/internal/linux"
)

const (
	// headerTimeout bounds how long a client may take over its request
	// headers, and over the rest of a body that its handler did not want. Else
	// bodies and streams have no bound.
	headerTimeout = 20 * time.Second
	// idleTimeout is longer than any proxy in front keeps an idle connection,
	// so that a proxy never sends on one that we just closed.
	idleTimeout = 640 * time.Second
	// maxFrame bounds the frames that a client may send over HTTP/2, in bytes.
	// A connection holds on to a buffer of the longest that it got.
	maxFrame = 64 << 10
	// maxStreams bounds the streams of one HTTP/2 connection. The default of
	// 250 is less than a busy client holds.
	maxStreams = 100_000
)

// keepAlive finds idle connections whose peer is gone: after 60 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// Server serves all that it was given to listen on.
type Server struct {
	listeners []net.Listener
	http      *http.Server
	cancel    context.CancelCauseFunc // ends the context of every request
	conns     registry
	sent      atomic.Uint64 // bytes
}

// Listen listens on the TCP address addr for New.
func Listen(addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	lc.SetMultipathTCP(false) // its sockets do not tell what origin.go asks for
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// New makes a server of the listeners, which it takes over: those of Listen,
// ListenVsock and ListenUnix. Connections wait there until Run.
func New(handler http.Handler, log *slog.Logger, listeners ...net.Listener) *Server {
	base, cancel := context.WithCancelCause(context.Background())
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &Server{cancel: cancel}
	s.conns.patience, s.conns.crowded, s.conns.unread = idleTimeout, crowdedIdle, headerTimeout
	s.conns.places = make(chan struct{}, linux.FileLimit()/4*3)
	for _, l := range listeners {
		s.listeners = append(s.listeners, watched{bound(l, &s.conns), deadCheck, &s.sent})
	}
	s.http = &http.Server{
		Handler:           Middleware(handler, log),
		ReadHeaderTimeout: headerTimeout,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame},
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       s.conns.enter,
		ConnState:         s.conns.track,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),

		// Its answer waits for a body, however long: see allOptions.
		DisableGeneralOptionsHandler: true,
	}
	return s
}

// Addr is the address of the first listener.
func (s *Server) Addr() net.Addr { return s.listeners[0].Addr() }

// Sent is how many bytes were sent so far, headers included.
func (s *Server) Sent() uint64 { return s.sent.Load() }

// Run serves until Close, or until one listener fails.
func (s *Server) Run(context.Context) error {
	ended := make(chan error, len(s.listeners))
	for _, l := range s.listeners {
		go func() { ended <- s.http.Serve(l) }()
	}
	var errs []error
	for range s.listeners {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, fmt.Errorf("serve: %w", err))
			_ = s.http.Close() // the others end as well
		}
	}
	return errors.Join(errs...)
}

// Close stops listening, ends the requests that are still being served with
// cause as the cause of their contexts, waits for them until ctx ends and then
// closes their connections.
func (s *Server) Close(ctx context.Context, cause error) error {
	s.cancel(cause)
	defer s.conns.close()
	if err := s.http.Shutdown(ctx); err == nil {
		return nil
	}
	if err := s.http.Close(); err != nil {
		return fmt.Errorf("close connections: %w", err)
	}
	return nil
}
