// Package client calls a daemon from Go.
//
// A Client is a value with a base URL; it is safe for concurrent use and has
// nothing to close. Process and Filesystem are the generated RPC clients, with
// authentication applied; Command, on top of them, runs a program and survives
// broken connections: it follows the output by offset, so that every byte comes
// once. Upload and Download do the same for files.
package client

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	"github.com/wrenn/envd/gen/process/processconnect"
)

// Options say how to call. The zero value calls as the default user.
type Options struct {
	// User to act as; "" is the daemon's default user.
	User string
	// Token is the access token; "" where none is set.
	Token string
	// HTTP is the client to use; nil means one of our own with HTTP/2, which
	// carries any number of streams over one connection.
	HTTP *http.Client
}

// Client calls one daemon.
type Client struct {
	Process    processconnect.ProcessClient
	Filesystem filesystemconnect.FilesystemClient

	base string
	http *http.Client
	opts Options
}

// New makes a client for the daemon at base, such as http://127.0.0.1:49983.
func New(base string, opts Options) *Client {
	hc := opts.HTTP
	if hc == nil {
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		hc = &http.Client{Transport: &http.Transport{Protocols: protocols}}
	}
	c := &Client{base: strings.TrimSuffix(base, "/"), http: hc, opts: opts}
	rpc := connect.WithInterceptors(authenticate{opts})
	c.Process = processconnect.NewProcessClient(hc, c.base, rpc)
	c.Filesystem = filesystemconnect.NewFilesystemClient(hc, c.base, rpc)
	return c
}

// Health is what the daemon says of itself.
type Health struct {
	Version string `json:"version"`
	// Features names the daemon's additions to the shared wire contract.
	Features []string `json:"features"`
}

// Health asks the daemon whether it serves.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	if err := c.plain(ctx, http.MethodGet, "/health", nil, &h); err != nil {
		return h, fmt.Errorf("health: %w", err)
	}
	return h, nil
}

// authenticate adds the user and the token to every RPC.
type authenticate struct{ opts Options }

func (a authenticate) set(h http.Header) {
	if a.opts.User != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(a.opts.User+":")))
	}
	if a.opts.Token != "" {
		h.Set("X-Access-Token", a.opts.Token)
	}
}

// WrapUnary implements connect.Interceptor.
func (a authenticate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		a.set(req.Header())
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (a authenticate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		a.set(conn.RequestHeader())
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor; clients have none.
func (a authenticate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
