package wire

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

// maxMessage is the largest message that the contract allows.
const maxMessage = 64 << 20

// post is the text of a request without its body.
func post(d *daemon, path, contentType string, headers ...string) string {
	h := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Type: %s\r\n", path, d.addr(), contentType)
	for i := 0; i < len(headers); i += 2 {
		h += headers[i] + ": " + headers[i+1] + "\r\n"
	}
	return h
}

// sized adds a body with its length.
func sized(head string, body []byte) []byte {
	return fmt.Appendf(nil, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
}

// raw sends bytes and answers what comes back, which may be nothing. The
// daemon has a limited time for it.
func raw(t *testing.T, d *daemon, b []byte, halfClose bool) (*http.Response, []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(b) // the daemon may have hung up half-way
	if halfClose {
		_ = conn.(*net.TCPConn).CloseWrite()
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPost})
	if errors.Is(err, net.ErrClosed) || err != nil && !isTimeout(err) {
		return nil, nil
	}
	if err != nil {
		t.Fatalf("no answer and no end: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if isTimeout(err) {
		t.Fatalf("the answer does not end: %s", body)
	}
	return res, body
}

func isTimeout(err error) bool {
	timeout := net.Error(nil)
	return errors.As(err, &timeout) && timeout.Timeout()
}

// codeOf finds the code in a Connect answer, unary or streaming; "" is success.
func codeOf(t *testing.T, res *http.Response, body []byte) string {
	t.Helper()
	if res == nil {
		return "no answer"
	}
	var e struct {
		Code  any
		Error struct{ Code string }
	}
	switch ct := res.Header.Get("Content-Type"); {
	case strings.HasPrefix(ct, "application/connect+"):
		for r := bytes.NewReader(body); ; {
			flags, text, err := readEnvelope(r)
			if err != nil {
				return "cut off"
			}
			if flags&flagEnd != 0 {
				if err := json.Unmarshal(text, &e); err != nil {
					t.Fatal(err)
				}
				return e.Error.Code
			}
		}
	case res.StatusCode == http.StatusOK:
		return ""
	default:
		if err := json.Unmarshal(body, &e); err != nil {
			return res.Status + " without JSON"
		}
		return fmt.Sprint(e.Code)
	}
}

// alive fails the test when the daemon does not answer.
func alive(t *testing.T, d *daemon) {
	t.Helper()
	hc := http1()
	defer hc.CloseIdleConnections()
	if res, _ := request(t, hc, "GET", d.base+"/health", ""); res.StatusCode/100 != 2 {
		t.Fatalf("health: %s", res.Status)
	}
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b) // memory does not fail
	_ = w.Close()
	return out.Bytes()
}

// TestBadMessages sends requests whose messages are wrong.
func TestBadMessages(t *testing.T) {
	const (
		list, start, input = "/process.Process/List", "/process.Process/Start", "/process.Process/StreamInput"
		jsonType, binType  = "application/json", "application/proto"
		jsonStream         = "application/connect+json"
	)
	declared := func(n uint32) []byte { return []byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }
	truncated := []string{"invalid_argument", "internal"} // connect-go says the latter
	trueCmd := []byte(`{"process":{"cmd":"true"}}`)
	rows := []struct {
		name, path, contentType string
		body                    []byte
		headers                 []string
		codes                   []string // any of them; "" is success
	}{
		{"not JSON", list, jsonType, []byte("{"), nil, []string{"invalid_argument"}},
		{"JSON of another shape", list, jsonType, []byte("[]"), nil, []string{"invalid_argument"}},
		{"no JSON", list, jsonType, nil, nil, []string{"invalid_argument"}},
		{"deep JSON", list, jsonType, []byte(strings.Repeat(`{"a":`, 100_000)), nil, []string{"invalid_argument"}},
		{"unknown JSON fields", list, jsonType, []byte(`{"later":{"a":[1,2,{"b":null}]},"includeExited":false}`), nil, []string{""}},
		{"duplicate JSON field", list, jsonType, []byte(`{"includeExited":true,"includeExited":true}`), nil, []string{"invalid_argument"}},
		{"UTF-8 in JSON", start, jsonStream, envelope(0, []byte("{\"process\":{\"cmd\":\"\xff\xfe\"}}")), nil, []string{"invalid_argument"}},
		{"UTF-8 in protobuf", start, "application/connect+proto", envelope(0, []byte{10, 4, 10, 2, 0xff, 0xfe}), nil, []string{"invalid_argument"}},
		{"not protobuf", list, binType, []byte{0xff, 0xff, 0xff}, nil, []string{"invalid_argument"}},
		{"no protobuf", list, binType, nil, nil, []string{""}},
		{"unknown protobuf fields", list, binType, []byte{0xf8, 0xff, 0x3f, 1}, nil, []string{""}},
		{"wrong wire type", start, "application/connect+proto", envelope(0, []byte{8, 1}), nil, []string{"invalid_argument"}},

		{"half a frame head", start, jsonStream, []byte{0, 0, 0}, nil, truncated},
		{"half a frame", start, jsonStream, envelope(0, trueCmd)[:12], nil, truncated},
		{"no frame", start, jsonStream, nil, nil, []string{"invalid_argument", "unimplemented", "internal"}},
		{"an end as the request", start, jsonStream, envelope(flagEnd, []byte("{}")), nil, []string{"invalid_argument", "unimplemented", "internal"}},
		{"two requests", start, jsonStream, append(envelope(0, trueCmd), envelope(0, trueCmd)...), nil, []string{"invalid_argument", "unimplemented"}},
		{"compressed without compression", start, jsonStream, envelope(flagCompressed, trueCmd), nil, []string{"invalid_argument", "internal"}},
		{"compressed and not", start, jsonStream, envelope(flagCompressed, trueCmd), []string{"Connect-Content-Encoding", "gzip"}, []string{"invalid_argument"}},
		{"compressed", start, jsonStream, envelope(flagCompressed, gzipped(trueCmd)), []string{"Connect-Content-Encoding", "gzip"}, []string{""}},
		{"unknown compression", start, jsonStream, envelope(0, trueCmd), []string{"Connect-Content-Encoding", "zip"}, []string{"unimplemented"}},
		{"4 GiB announced", start, jsonStream, declared(1<<32 - 1), nil, []string{"resource_exhausted"}},
		{"64 MiB and one announced", start, jsonStream, declared(maxMessage + 1), nil, []string{"resource_exhausted"}},
		{"64 MiB announced", start, jsonStream, declared(maxMessage), nil, truncated},
		{"garbage in a stream of input", input, jsonStream, bytes.Repeat([]byte{0xff}, 1000), nil, []string{"resource_exhausted"}},
		{"half a stream of input", input, jsonStream, envelope(0, []byte(`{"keepalive":{}}`))[:9], nil, truncated},

		{"bomb", list, jsonType, gzipped(make([]byte, maxMessage+1)), []string{"Content-Encoding", "gzip"}, []string{"resource_exhausted"}},
		{"gzip that is none", list, jsonType, []byte("{}"), []string{"Content-Encoding", "gzip"}, []string{"invalid_argument"}},
		{"unknown encoding", list, jsonType, []byte("{}"), []string{"Content-Encoding", "zip"}, []string{"unimplemented"}},

		{"timeout in words", list, jsonType, []byte("{}"), []string{"Connect-Timeout-Ms", "soon"}, []string{"invalid_argument"}},
		{"timeout of 11 digits", list, jsonType, []byte("{}"), []string{"Connect-Timeout-Ms", "99999999999"}, []string{"invalid_argument"}},
		{"timeout of 10 digits", list, jsonType, []byte("{}"), []string{"Connect-Timeout-Ms", "9999999999"}, []string{""}},
		{"version", list, jsonType, []byte("{}"), []string{"Connect-Protocol-Version", "7"}, []string{"invalid_argument"}},
		{"keepalive in words", list, jsonType, []byte("{}"), []string{"Keepalive-Ping-Interval", "-1e9"}, []string{""}},
		{"no path", start, jsonType, []byte("{}"), nil, []string{"415"}},
	}
	oneDaemon(t, func(t *testing.T, d *daemon) {
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				res, body := raw(t, d, sized(post(d, row.path, row.contentType, row.headers...), row.body), false)
				if code := codeOf(t, res, body); !slices.Contains(row.codes, code) {
					t.Errorf("code %q, expected one of %q; %.300s", code, row.codes, body)
				}
				alive(t, d)
			})
		}
	})
}

// TestBadHTTP sends what is no request at all.
func TestBadHTTP(t *testing.T) {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	oneDaemon(t, func(t *testing.T, d *daemon) {
		unary := post(d, "/process.Process/List", "application/json")
		for name, b := range map[string][]byte{
			"nothing":                nil,
			"one byte":               []byte("P"),
			"garbage":                bytes.Repeat([]byte("\x00\xffgarbage\r\n"), 100),
			"TLS":                    []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
			"no version":             []byte("GET /health\r\n\r\n"),
			"unknown version":        []byte("GET /health HTTP/9.9\r\n\r\n"),
			"no host":                []byte("GET /health HTTP/1.1\r\n\r\n"),
			"header without a colon": []byte("GET /health HTTP/1.1\r\nHost: x\r\nbroken\r\n\r\n"),
			"huge header":            []byte("GET /health HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 3<<20) + "\r\n\r\n"),
			"many headers":           []byte("GET /health HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 300_000) + "\r\n"),
			"huge request line":      []byte("GET /" + strings.Repeat("x", 3<<20) + " HTTP/1.1\r\n\r\n"),
			"two lengths":            []byte(unary + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
			"negative length":        []byte(unary + "Content-Length: -1\r\n\r\n{}"),
			"less than announced":    []byte(unary + "Content-Length: 1000\r\n\r\n{"),
			"chunk without a size":   []byte(unary + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
			"huge chunk size":        []byte(unary + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
			"half a chunk":           []byte(unary + "Transfer-Encoding: chunked\r\n\r\n10\r\n{"),
			"CONNECT":                []byte("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n"),
			"OPTIONS *":              []byte("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
			"escapes":                []byte("GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n"),
			"dots":                   []byte("GET /../../health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),

			"half a preface":         []byte(preface[:10]),
			"preface alone":          []byte(preface),
			"preface and garbage":    []byte(preface + strings.Repeat("\xde\xad\xbe\xef", 1000)),
			"SETTINGS of 5 bytes":    []byte(preface + "\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde"),
			"frame of 16 MiB":        []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
			"DATA before HEADERS":    []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x01\x00\x00\x00\x00\x00\x01x"),
			"HEADERS of garbage":     []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff"),
			"endless CONTINUATION":   []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01\x00\x00\x00\x00\x01" + strings.Repeat("\x00\x00\x00\x09\x00\x00\x00\x00\x01", 100_000)),
			"stream ids that shrink": []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01\x05\x00\x00\x00\x05" + "\x00\x00\x00\x01\x05\x00\x00\x00\x03"),
			"flood of PING":          []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + strings.Repeat("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", 12_000)),
			"flood of RST":           []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + strings.Repeat("\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08", 10_000)),
		} {
			t.Run(name, func(t *testing.T) {
				// Half-closed, so that the daemon need not wait for more.
				res, body := raw(t, d, b, true)
				if res != nil && res.StatusCode/100 == 2 && name != "dots" && name != "OPTIONS *" {
					t.Errorf("%s %.100q", res.Status, body)
				}
				alive(t, d)
			})
		}
	})
}

// TestLargestMessage checks both sides of the limit with real messages. It runs
// by itself: with the race detector, to copy 64 MiB a few times takes seconds.
func TestLargestMessage(t *testing.T) {
	d := daemons[0]
	c := &call{t: t, d: d, kind: "connect-proto-http1", caller: newConnect(d, http1())}
	ctx := bounded(t)
	f := c.start(ctx, sh("wc -c"))
	const overhead = 64 // of the fields around the bytes
	c.must(c.sendInput(ctx, pid(f.pid), make([]byte, maxMessage-overhead)))
	c.wantCode(c.sendInput(ctx, pid(f.pid), make([]byte, maxMessage)), connect.CodeResourceExhausted)
	c.must(c.closeStdin(ctx, pid(f.pid)))
	if f.exit(0); strings.TrimSpace(string(f.stdout)) != fmt.Sprint(maxMessage-overhead) {
		t.Errorf("the program got %s bytes", f.stdout)
	}
}

// TestHalfClosed checks a client that closes its sending side early, which
// HTTP/1.1 servers may take for gone: the process lives, and the next client
// is served.
func TestHalfClosed(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.needs(t, "process.output_offsets")
		name := unique(t)
		body := fmt.Sprintf(`{"process":{"cmd":"/bin/sh","args":["-c","echo one; read x; echo two"]},"tag":%q}`, name)
		raw(t, d, sized(post(d, "/process.Process/Start", "application/connect+json"), envelope(0, []byte(body))), true)
		c := &call{t: t, d: d, kind: "connect-proto-h2c", caller: newConnect(d, http2())}
		f := c.attach(bounded(t), &pb.ConnectRequest{Process: tag(name), Offset: proto.Uint64(0)})
		f.until("one\n")
		c.must(c.sendInput(bounded(t), tag(name), []byte("\n")))
		f.until("two\n").exit(0)
	})
}

// TestIdleConnections holds many connections that have sent one byte, and
// looks at how the daemon serves others meanwhile. The race detector allows
// 8,128 goroutines, so it is for a daemon without.
func TestIdleConnections(t *testing.T) {
	ownBinary(t)
	connections := 10_000
	var rl syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &rl); err != nil {
		t.Fatal(err)
	}
	if room := int(rl.Cur)/4*3 - 100; connections > room { // what the daemon takes, and others
		connections = room
		t.Logf("descriptors are limited: %d connections", connections)
	}
	path := filepath.Join(t.TempDir(), "envd")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./cmd/envd")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build daemon: %v\n%s", err, out)
	}
	d := &daemon{name: "idle", program: path}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t, d)
	conns := make([]net.Conn, 0, connections)
	for range connections {
		conn, err := net.Dial("tcp", d.addr())
		if err != nil {
			t.Fatalf("after %d connections: %v", len(conns), err)
		}
		conns = append(conns, conn)
		if _, err := conn.Write([]byte("P")); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, "the daemon has accepted all", func() bool { return descriptors(t, d) >= before+connections })
	hc := http1()
	took := make([]time.Duration, 100)
	for i := range took {
		began := time.Now()
		if res, _ := request(t, hc, "GET", d.base+"/health", ""); res.StatusCode != http.StatusOK {
			t.Fatal(res.Status)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	t.Logf("/health beside %d connections: median %v, slowest %v", connections, took[50], took[99])
	if took[99] > 2*time.Second {
		t.Errorf("/health took %v", took[99])
	}
	c := &call{t: t, d: d, kind: "connect-proto-http1", caller: newConnect(d, hc)}
	if got := c.output(bounded(t), sh("echo served")); got != "served\n" {
		t.Errorf("got %q", got)
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	hc.CloseIdleConnections()
	waitUntil(t, "the descriptors are back", func() bool { return descriptors(t, d) <= before+5 })
	if err := d.stop(); err != nil {
		t.Errorf("%v\n%s", err, d.log.tail())
	}
}

// waitUntil waits for a state that the kernel or the daemon reaches by itself.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v were not enough until %s", limit, what)
		}
	}
}
