package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// limit bounds what a test waits for.
const limit = 20 * time.Second

// serve runs a server for handler until the test ends.
func serve(t *testing.T, handler http.Handler, log *slog.Logger) *Server {
	t.Helper()
	s := open(t, handler, log)
	run(t, s)
	return s
}

// open makes a server on a port of its own, beside more.
func open(t *testing.T, handler http.Handler, log *slog.Logger, more ...net.Listener) *Server {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return New(handler, log, append([]net.Listener{l}, more...)...)
}

// run runs s until the test ends.
func run(t *testing.T, s *Server) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := s.Close(ctx, errors.New("test is over")); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// client makes a client for one version of HTTP that is closed with the test.
func client(t *testing.T, h2 bool) *http.Client {
	t.Helper()
	p := new(http.Protocols)
	p.SetHTTP1(!h2)
	p.SetUnencryptedHTTP2(h2)
	hc := &http.Client{Transport: &http.Transport{Protocols: p}}
	t.Cleanup(hc.CloseIdleConnections)
	return hc
}

// TestPanicRecovered checks that a handler's panic is an error for its client,
// a log line, and nothing for anybody else.
func TestPanicRecovered(t *testing.T) {
	leaktest.Check(t)
	var mu sync.Mutex
	var text bytes.Buffer
	log := slog.New(slog.NewJSONHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return text.Write(p)
	}), nil))
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/late":
			_, _ = io.WriteString(w, "some")
			_ = http.NewResponseController(w).Flush()
			panic("late")
		case "/early":
			panic(fmt.Errorf("early"))
		}
	}), log)
	for _, h2 := range []bool{false, true} {
		for _, path := range []string{"/early", "/late"} {
			res, err := client(t, h2).Get("http://" + s.Addr().String() + path)
			if err == nil {
				_, err = io.ReadAll(res.Body)
				_ = res.Body.Close()
			}
			if err == nil {
				t.Errorf("HTTP/2 %v %s: the answer looks whole", h2, path)
			}
		}
		res, err := client(t, h2).Get("http://" + s.Addr().String() + "/fine")
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("after the panics: %v, %v", res, err)
		}
		_ = res.Body.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	lines := 0
	for line := range strings.Lines(text.String()) {
		var entry struct{ Msg, Path, Panic, Stack string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if entry.Msg != "handler panicked" {
			continue
		}
		lines++
		if "/"+entry.Panic != entry.Path || !strings.Contains(entry.Stack, "server_test.go") {
			t.Errorf("log line %+v", entry)
		}
	}
	if lines < 4 { // a client may have tried again
		t.Errorf("%d log lines about 4 panics", lines)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestCloseEndsStreams checks that shutting down does not wait for streams
// that never end by themselves: their contexts end, with the cause.
func TestCloseEndsStreams(t *testing.T) {
	leaktest.Check(t)
	cause := errors.New("the reason")
	causes := make(chan error, 2)
	s := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
		_, _ = io.WriteString(w, "end")
	}), quiet())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	var bodies []io.ReadCloser
	for _, h2 := range []bool{false, true} {
		res, err := client(t, h2).Get("http://" + s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, res.Body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- s.Close(ctx, cause) }()
	for _, body := range bodies {
		if b, err := io.ReadAll(body); string(b) != "end" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		_ = body.Close()
	}
	for range bodies {
		if err := <-causes; !errors.Is(err, cause) {
			t.Errorf("cause %v", err)
		}
	}
	if err := errors.Join(<-closed, <-ended); err != nil {
		t.Error(err)
	}
}

// TestCloseWithinBudget checks that a handler which does not obey, because its
// client does not read, is not waited for.
func TestCloseWithinBudget(t *testing.T) {
	leaktest.Check(t)
	s := open(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}), quiet())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	res, err := client(t, false).Get("http://" + s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	const budget = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	defer cancel()
	began := time.Now()
	_ = s.Close(ctx, errors.New("over")) // either it says so or not
	if took := time.Since(began); took > budget+5*time.Second {
		t.Errorf("close took %v", took)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestManyStreamsOnOneConnection checks that an HTTP/2 connection carries more
// streams than net/http's default of 250.
func TestManyStreamsOnOneConnection(t *testing.T) {
	leaktest.Check(t)
	const streams = 600
	all := make(chan struct{}) // closed when all are being served
	var mu sync.Mutex
	serving, conns := 0, make(map[string]bool)
	s := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" {
			return
		}
		mu.Lock()
		conns[r.RemoteAddr] = true
		if serving++; serving == streams {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all:
		case <-r.Context().Done():
		}
	}), quiet())
	hc := client(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	get := func(path string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr().String()+path, nil)
		if err != nil {
			return err
		}
		res, err := hc.Do(req)
		if err != nil {
			return err
		}
		return res.Body.Close()
	}
	// The client has to have a connection, and its limit, before it opens more.
	if err := get("/first"); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, streams)
	for range streams {
		go func() { errs <- get("/") }()
	}
	for range streams {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if len(conns) != 1 {
		t.Errorf("%d connections", len(conns))
	}
}

// TestGoneBeforeBodyRead checks that a request ends with its client although
// its body was not read; see noticeGone.
func TestGoneBeforeBodyRead(t *testing.T) {
	leaktest.Check(t)
	begun, over := make(chan struct{}), make(chan error)
	s := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-r.Context().Done()
		over <- context.Cause(r.Context())
	}), quiet())
	for _, reset := range []bool{true, false} {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"+strings.Repeat("x", 10_000))
		if err != nil {
			t.Fatal(err)
		}
		<-begun
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		_ = conn.Close()
		select {
		case err := <-over:
			if !errors.Is(err, errGone) {
				t.Errorf("cause %v", err)
			}
		case <-time.After(limit):
			t.Fatal("the request goes on without its client")
		}
	}
}

// TestBodyWatchedToItsEnd checks that a body that is slow to come is not cut
// off by looking after its client.
func TestBodyWatchedToItsEnd(t *testing.T) {
	leaktest.Check(t)
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s, %v, %v", b, err, r.Context().Err())
	}), quiet())
	r, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, "first ")
		time.Sleep(goneCheck + 200*time.Millisecond) // past one check
		_, _ = io.WriteString(w, "second")
		_ = w.Close()
	}()
	res, err := client(t, false).Post("http://"+s.Addr().String(), "text/plain", r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "first second, <nil>, <nil>" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestCORSHeaders(t *testing.T) {
	leaktest.Check(t)
	s := serve(t, http.NotFoundHandler(), quiet())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, "http://"+s.Addr().String()+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://page.example")
	req.Header.Set("Access-Control-Request-Method", "PATCH")
	res, err := client(t, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode/100 != 2 || res.Header.Get("Access-Control-Max-Age") != "7200" ||
		res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("%s %v", res.Status, res.Header)
	}
}
