// Package mmds asks the metadata service of the microVM, version 2, who the
// guest is.
//
// Firecracker answers at a link-local address inside the guest's network: first
// a PUT for a token that lives for a minute, then a GET with it. The host fills
// the service in after the boot, so an answer without an instance means not yet.
// What it says is checked before anybody sees it, since it ends up in environments and
// files. No proxy of the environment is used and no redirection is followed.
//
// Nobody inside the guest but root can answer in its place: to receive packets
// for the address takes a route or an interface of the guest's own network
// namespace, and so CAP_NET_ADMIN there. A socket that is merely bound to the
// address (IP_FREEBIND) gets none.
//
// A Client has no goroutine and keeps no connection.
package mmds

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Address is the service's, from Firecracker's documentation.
const Address = "169.254.169.254:80"

const (
	// tokenSeconds is how long a token is asked to live.
	tokenSeconds = "60"
	// maxBody is the most that is read of an answer, in bytes. The service holds
	// 50 KiB unless the host allows more.
	maxBody = 1 << 20
	// maxHeader is room for what precedes it, in bytes.
	maxHeader = 64 << 10
	// maxValue bounds each value, in bytes.
	maxValue = 1024
)

// Metadata is what the host says. Empty values are those that it has not said
// yet.
type Metadata struct {
	InstanceID      string `json:"instanceID"`
	EnvID           string `json:"envID"`
	Address         string `json:"address"`         // of a log collector
	AccessTokenHash string `json:"accessTokenHash"` // hex SHA-512
}

// Client asks one service. New makes it.
type Client struct {
	address string // to dial
}

// New makes a client for the service at address, which is Address but in tests.
func New(address string) *Client { return &Client{address} }

// Fetch asks once. An error says that there is no such service, that it does not
// answer before ctx ends, or that it talks nonsense.
func (c *Client) Fetch(ctx context.Context) (Metadata, error) {
	var m Metadata
	token, err := c.do(ctx, http.MethodPut, "/latest/api/token", "X-metadata-token-ttl-seconds", tokenSeconds)
	if err != nil {
		return m, fmt.Errorf("metadata token: %w", err)
	}
	text := strings.TrimSpace(string(token))
	if err := checkValue(text); err != nil || text == "" {
		return m, fmt.Errorf("metadata token: %w", errors.Join(errNonsense, err))
	}
	body, err := c.do(ctx, http.MethodGet, "/", "X-metadata-token", text)
	if err != nil {
		return m, fmt.Errorf("metadata: %w", err)
	}
	return parse(body)
}

// do makes one request on a connection of its own: one of before a snapshot is
// of no use after it. An http.Client would be 0.4 MB of code for this.
func (c *Client) do(ctx context.Context, method, path, header, value string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.address+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	req.Header.Set(header, value)
	req.Header.Set("Accept", "application/json")
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // read to the end, or given up
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	body, err := exchange(conn, req)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return body, err
}

// exchange sends a request and answers the body of the response to it.
func exchange(conn net.Conn, req *http.Request) ([]byte, error) {
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxHeader+maxBody)), req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // ends with the connection
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("status %s", res.Status)
	case len(body) > maxBody:
		return nil, fmt.Errorf("%w: more than %d bytes", errNonsense, maxBody)
	}
	return body, nil
}

var errNonsense = errors.New("the answer makes no sense")

// parse reads and checks an answer. Other members are the host's own affair.
func parse(body []byte) (m Metadata, err error) {
	if err := json.Unmarshal(body, &m); err != nil {
		return Metadata{}, fmt.Errorf("metadata: %w: %v", errNonsense, err)
	}
	for name, v := range map[string]string{
		"instanceID": m.InstanceID, "envID": m.EnvID, "address": m.Address, "accessTokenHash": m.AccessTokenHash,
	} {
		if err := checkValue(v); err != nil {
			return Metadata{}, fmt.Errorf("metadata: %w: %s: %v", errNonsense, name, err)
		}
	}
	return m, nil
}

// checkValue refuses what must not get into a header, an environment or a file
// of one line.
func checkValue(v string) error {
	if len(v) > maxValue || !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
		return errors.New("too long, or not text of one line")
	}
	return nil
}
