package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/ports"
)

// portsServer serves GET /ports with a forwarder that forwards nothing.
func portsServer(t *testing.T) (*httptest.Server, *ports.Forwarder) {
	t.Helper()
	leaktest.Check(t)
	f, err := ports.Open(ports.Config{
		Active: func() bool { return false }, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.Run(context.Background()) }()
	srv := httptest.NewUnstartedServer(listPorts(f))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		srv.Close()
	})
	return srv, f
}

func TestPortsWithoutKernel(t *testing.T) {
	w := httptest.NewRecorder()
	listPorts(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ports", nil))
	if w.Code != http.StatusNotImplemented || !json.Valid(w.Body.Bytes()) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPortsList(t *testing.T) {
	srv, _ := portsServer(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v %s %v", resp.StatusCode, resp.Header, body, err)
	}
	var answer map[string]json.RawMessage
	var list []map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(answer["ports"], &list); err != nil {
		t.Fatal(err)
	}
	if len(answer) != 1 {
		t.Errorf("fields beside ports where nothing is forwarded: %s", body)
	}
	for _, p := range list {
		if p["port"] == float64(l.Addr().(*net.TCPAddr).Port) && p["address"] == "127.0.0.1" {
			if p["pid"] != float64(os.Getpid()) || !strings.Contains(p["command"].(string), os.Args[0]) || p["forwarded"] != false {
				t.Errorf("got %v", p)
			}
			return
		}
	}
	t.Errorf("our listener is not in %s", body)
}

func TestPortsStream(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "h2c"} {
		t.Run(proto, func(t *testing.T) { testPortsStream(t, proto == "h2c") })
	}
}

func testPortsStream(t *testing.T, h2 bool) {
	srv, _ := portsServer(t)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Keepalive-Ping-Interval", "1")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("content type %q", ct)
	}
	lines := bufio.NewScanner(resp.Body)
	until := func(want ...string) {
		t.Helper()
		last := ""
		for lines.Scan() {
			line := lines.Text()
			if line == want[0] && last == "" || last == want[0] && len(want) == 2 && strings.HasPrefix(line, want[1]) {
				if len(want) == 1 || last == want[0] {
					return
				}
			}
			last = line
		}
		t.Fatalf("no %q before %v", want, lines.Err())
	}
	until(": ports")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	until("event: opened", `data: {"port":`+port+`,"address":"127.0.0.1","pid":`+strconv.Itoa(os.Getpid()))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	until("event: closed", `data: {"port":`+port+`,"address":"127.0.0.1","forwarded":false}`)
	until(": keepalive")
}

// TestPortsStreamSlowClient cuts a client off that takes nothing.
func TestPortsStreamSlowClient(t *testing.T) {
	var took time.Duration
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		out, began := http.NewResponseController(w), time.Now()
		for writeWithin(100*time.Millisecond, w, out, make([]byte, 1<<20)) == nil {
			began = time.Now()
		}
		took = time.Since(began)
	}))
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	srv.Close() // waits for the handler
	if took > 5*time.Second {
		t.Errorf("cut off after %v", took)
	}
}

// TestPortsStreamEnds: the stream ends with the forwarder.
func TestPortsStreamEnds(t *testing.T) {
	srv, f := portsServer(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("stream ended with %v", err)
	}
}
