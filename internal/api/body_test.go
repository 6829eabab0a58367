package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/wrenn/envd/internal/leaktest"
)

// TestBrokenBodies sends what is no body over HTTP/1.1, whole and broken off:
// that is the client's fault, and it is told so in the form of its protocol.
func TestBrokenBodies(t *testing.T) {
	leaktest.Check(t)
	s := newSite(t, homeDir(t), false)
	const chunked = "Transfer-Encoding: chunked\r\n\r\n"
	const stat, start = "/filesystem.Filesystem/Stat", "/process.Process/Start"
	for _, kind := range []struct{ path, contentType, answer string }{
		{stat, "application/json", `{"code":"invalid_argument","message":"read request body: `},
		{stat, "application/proto", `{"code":"invalid_argument","message":"read request body: `},
		{start, "application/connect+json", `{"error":{"code":"invalid_argument","message":"read request body: `},
		{stat, "application/grpc", "Grpc-Status: 3\r\n"},
		{stat, "application/grpc-web", "Grpc-Status: 3\r\n"},
		{"/init", "application/json", `{"code":400,"message":"init: read body: `},
	} {
		for name, body := range map[string]string{
			"no size":         chunked + "zz\r\n{}\r\n0\r\n\r\n",
			"huge size":       chunked + "ffffffffffffffffff\r\n",
			"no end of chunk": chunked + "2\r\n{}xx0\r\n\r\n",
			"bad trailer":     chunked + "2\r\n{}\r\n0\r\nfoo\r\n\r\n",
			"half a chunk":    chunked + "10\r\n{",
			"after a chunk":   chunked + "7\r\n\x00\x00\x00\x00\x10{\"\r\n",
			"too short":       "Content-Length: 50\r\n\r\n\x00\x00\x00\x00\x30{",
		} {
			t.Run(fmt.Sprintf("%s %s, %s", kind.path, kind.contentType, name), func(t *testing.T) {
				answer := exchange(t, s, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%s", kind.path, kind.contentType, body))
				if !strings.Contains(answer, kind.answer) {
					t.Errorf("%q", answer)
				}
				if unary := strings.HasPrefix(kind.answer, `{"code"`); unary && !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
					t.Errorf("%.40q", answer)
				}
			})
		}
	}
}

// exchange sends a request that ends the connection's half, and answers all
// that comes back.
func exchange(t *testing.T, s *site, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
	must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, request)
	must(t, err)
	must(t, conn.(*net.TCPConn).CloseWrite())
	b, err := io.ReadAll(conn)
	must(t, err)
	_, err = http.ReadResponse(bufio.NewReader(strings.NewReader(string(b))), nil)
	must(t, err)
	return string(b)
}
