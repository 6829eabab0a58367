package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

var errTestRestored = errors.New("restored")

// dial opens a raw connection, sends text on it and reads.
func dial(t *testing.T, s *Server, text string) *bufio.Reader {
	t.Helper()
	return bufio.NewReader(dialed(t, s, text))
}

// dialed is a raw connection that text was sent on.
func dialed(t *testing.T, s *Server, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	return conn
}

// h2Hello is how a client opens HTTP/2: the preface and empty settings.
const h2Hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// await polls until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, limit)
		}
	}
}

// open counts the server's connections.
func (s *Server) open() int {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	return len(s.conns.all)
}

// stream serves /stream, which says hello and goes on until its context ends,
// with the cause on causes, or until release yields; /upload, which reads its
// body, and anything else.
type stream struct {
	causes  chan error
	release chan struct{}
	uploads chan error
}

func newStream() *stream {
	return &stream{causes: make(chan error, 10), release: make(chan struct{}), uploads: make(chan error, 10)}
}

func (st *stream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/stream":
		_, _ = io.WriteString(w, "hello ")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			st.causes <- context.Cause(r.Context())
			_, _ = io.WriteString(w, "aborted")
		case <-st.release:
			_, _ = io.WriteString(w, "whole")
		}
	case "/upload":
		st.uploads <- nil // it has begun
		_, err := io.Copy(io.Discard, r.Body)
		st.uploads <- err
		w.WriteHeader(http.StatusBadRequest)
	case "/last":
		w.Header().Set("Connection", "close")
	}
}

// get begins a GET and answers its response once its headers are there.
func get(t *testing.T, hc *http.Client, s *Server, path string) *http.Response {
	t.Helper()
	res, err := hc.Get("http://" + s.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// TestRestClosesIdleConnections checks that idle connections go at once, those
// over h2c as well (which net/http keeps until one more request), and those on
// which nothing was sent yet; that streams go on to their end, and that after
// Wake everything is as before.
func TestRestClosesIdleConnections(t *testing.T) {
	leaktest.Check(t)
	h := newStream()
	s := serve(t, h, quiet())
	h1, h2 := client(t, false), client(t, true)
	one, two := get(t, h1, s, "/stream"), get(t, h2, s, "/stream")
	fresh := dial(t, s, "")
	idle1 := dial(t, s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, err := http.ReadResponse(idle1, nil); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	idle2 := dial(t, s, h2Hello)
	time.Sleep(surelyQuiet) // it is the time that is tested
	await(t, "connections", func() bool { return s.open() == 5 })
	var frame [9]byte
	if _, err := io.ReadFull(idle2, frame[:]); err != nil { // it is served
		t.Fatal(err)
	}

	s.Rest()
	for name, r := range map[string]*bufio.Reader{"fresh": fresh, "HTTP/1.1": idle1, "h2c": idle2} {
		rest, err := io.ReadAll(r)
		if err != nil {
			t.Errorf("%s connection: %v", name, err)
		}
		if name == "h2c" && !bytes.HasSuffix(rest, goaway) {
			t.Errorf("%s connection ends with % x", name, rest)
		}
	}
	await(t, "only the streams' connections", func() bool { return s.open() == 2 })
	close(h.release)
	for _, res := range []*http.Response{one, two} {
		if got := body(t, res); got != "hello whole" {
			t.Errorf("stream over %s got %q", res.Proto, got)
		}
	}
	// Their connections become idle, and are closed without another request.
	await(t, "no connection", func() bool { return s.open() == 0 })

	s.Wake()
	for range 2 {
		_ = body(t, get(t, h1, s, "/"))
		_ = body(t, get(t, h2, s, "/"))
	}
	if n := s.open(); n != 2 {
		t.Errorf("%d connections for two clients after Wake", n)
	}
}

// TestRestClosesTheAnsweringConnection checks that the connection which the end
// of a prepare is told on closes behind it, over h2c within milliseconds and
// not after the second that net/http waits.
func TestRestClosesTheAnsweringConnection(t *testing.T) {
	leaktest.Check(t)
	s := serve(t, newStream(), quiet())
	for _, h2 := range []bool{false, true} {
		s.Rest()
		_ = body(t, get(t, client(t, h2), s, "/last"))
		began := time.Now()
		await(t, "no connection", func() bool { return s.open() == 0 })
		t.Logf("h2 %v: closed after %v", h2, time.Since(began))
		s.Wake()
	}
}

// TestDropOlder checks that streams on connections older than the last Rest end
// with the cause, whole up to there, that uploads fail, and that younger
// connections and the caller's stay.
func TestDropOlder(t *testing.T) {
	leaktest.Check(t)
	h := newStream()
	s := serve(t, h, quiet())
	var old []*http.Response
	for _, h2 := range []bool{false, true} {
		old = append(old, get(t, client(t, h2), s, "/stream"))
	}
	for _, h2 := range []bool{false, true} {
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Addr().String()+"/upload", r)
		if err != nil {
			t.Fatal(err)
		}
		hc := client(t, h2)
		sent := make(chan struct{})
		t.Cleanup(func() { _ = w.Close(); <-sent })
		go func() {
			defer close(sent)
			if res, err := hc.Do(req); err == nil {
				_ = res.Body.Close()
			}
		}()
		<-h.uploads
	}
	s.Rest()
	s.Wake()
	young := get(t, client(t, true), s, "/stream")
	await(t, "connections", func() bool { return s.open() == 5 })

	s.Drop(t.Context(), false, errTestRestored)
	for range old {
		if err := <-h.causes; !errors.Is(err, errTestRestored) {
			t.Errorf("cause %v", err)
		}
	}
	for _, res := range old {
		if got := body(t, res); got != "hello aborted" {
			t.Errorf("stream over %s got %q", res.Proto, got)
		}
	}
	for range 2 {
		select {
		case err := <-h.uploads:
			if err == nil {
				t.Error("half an upload looks whole")
			}
		case <-time.After(limit):
			t.Fatal("an upload hangs")
		}
	}
	await(t, "only the younger connection", func() bool { return s.open() == 1 })
	close(h.release)
	if got := body(t, young); got != "hello whole" {
		t.Errorf("younger stream got %q", got)
	}
}

// TestDropAllButTheCaller checks a restore that no prepare announced.
func TestDropAllButTheCaller(t *testing.T) {
	leaktest.Check(t)
	h := newStream()
	var s *Server
	s = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/init" {
			s.Drop(r.Context(), true, errTestRestored)
		}
		h.ServeHTTP(w, r)
	}), quiet())
	other, caller := client(t, false), client(t, true)
	res, mine := get(t, other, s, "/stream"), get(t, caller, s, "/stream")
	_ = body(t, get(t, caller, s, "/init"))
	if got := body(t, res); got != "hello aborted" {
		t.Errorf("stream got %q", got)
	}
	close(h.release)
	if got := body(t, mine); got != "hello whole" {
		t.Errorf("the caller's stream got %q", got)
	}
}

// TestDropGhost checks that a request which is blocked on a peer that takes
// nothing ends all the same, by force.
func TestDropGhost(t *testing.T) {
	leaktest.Check(t)
	over := make(chan error, 1)
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				over <- err
				return
			}
		}
	}), quiet())
	dial(t, s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	var c *conn
	await(t, "a full connection", func() bool {
		s.conns.mu.Lock()
		defer s.conns.mu.Unlock()
		for c = range s.conns.all {
			return c.unsent()
		}
		return false
	})
	s.Drop(t.Context(), true, errTestRestored)
	select {
	case err := <-over:
		if strings.Contains(err.Error(), "timeout") {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(limit):
		t.Fatal("the request goes on")
	}
	await(t, "no connection", func() bool { return s.open() == 0 })
}

// TestRestMeetsRequests checks that requests which arrive around Rest are
// answered, or their connection is closed without one that was begun: they
// never wait for nothing.
func TestRestMeetsRequests(t *testing.T) {
	leaktest.Check(t)
	var begun [4]atomic.Int64
	s := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		begun[r.URL.Path[1]-'0'].Add(1)
	}), quiet())
	var answered [4]atomic.Int64
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for i := range answered {
		h2 := i%2 == 0
		hc := client(t, h2)
		hc.Timeout = limit
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := hc.Post(fmt.Sprintf("http://%s/%d", s.Addr(), i), "text/plain", nil)
				switch {
				case err == nil:
					_ = res.Body.Close()
					answered[i].Add(1)
				case errors.Is(err, context.DeadlineExceeded):
					t.Errorf("HTTP/2 %v: %v", h2, err)
					return
				}
			}
		})
	}
	for i := range answered {
		await(t, "answers to everybody", func() bool {
			s.Rest()
			s.Wake()
			return answered[i].Load() > 50 || t.Failed()
		})
	}
	close(stop)
	clients.Wait()
	for i := range begun {
		if b, a := begun[i].Load(), answered[i].Load(); b != a {
			t.Errorf("client %d: %d requests were begun and %d answered", i, b, a)
		}
	}
}

// TestRestSparesFirstRequests checks that a connection which has just been made,
// before Rest or after it, is not taken for idle while its first request is on
// its way.
func TestRestSparesFirstRequests(t *testing.T) {
	leaktest.Check(t)
	s := serve(t, newStream(), quiet())
	connect := func() net.Conn {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	for tries := 0; ; tries++ {
		began := time.Now()
		before := connect()
		await(t, "the connection", func() bool { return s.open() == 1 })
		s.Rest()
		after := connect()
		failed := ""
		for name, conn := range map[string]net.Conn{"before": before, "after": after} {
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // closed: the answer tells
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || !res.Close {
				failed += fmt.Sprintf("%s: %v, %v; ", name, res, err)
			}
		}
		s.Wake()
		await(t, "no connection", func() bool { return s.open() == 0 })
		if failed == "" {
			break
		}
		// On a busy machine the requests may have been slow.
		if time.Since(began) < surelyQuiet || tries == 20 {
			t.Fatal(failed)
		}
	}
	// One that stays silent is closed if it is old, and left if it is not.
	silent := connect()
	await(t, "the connection", func() bool { return s.open() == 1 })
	s.Rest()
	young := connect()
	_ = silent.SetReadDeadline(time.Now().Add(limit))
	if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("silent since before: %v", err)
	}
	_ = young.SetReadDeadline(time.Now().Add(2 * surelyQuiet))
	if _, err := young.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silent since after: %v", err)
	}
}

// TestRestTime checks for how long a connection is waited for: on HTTP/2, net/http
// calls it idle before the last answer is sent, and a slow machine may leave
// any time in between.
func TestRestTime(t *testing.T) {
	for name, row := range map[string]struct {
		state     http.ConnState
		h2, wrote bool
		unread    bool // something was read since it became idle
		want      time.Duration
	}{
		"new":                        {http.StateNew, false, false, false, surelyQuiet},
		"HTTP/1.1":                   {http.StateIdle, false, false, false, quietTime},
		"HTTP/1.1, read":             {http.StateIdle, false, true, true, surelyQuiet},
		"HTTP/2, answered":           {http.StateIdle, true, true, false, quietTime},
		"HTTP/2, answered, read":     {http.StateIdle, true, true, true, surelyQuiet},
		"HTTP/2, not answered":       {http.StateIdle, true, false, false, surelySent},
		"HTTP/2, not answered, read": {http.StateIdle, true, false, true, surelySent},
	} {
		var c conn
		c.state.Store(int32(row.state))
		c.h2.Store(row.h2)
		c.wrote.Store(row.wrote)
		reads := uint64(7)
		c.idleReads.Store(reads)
		if row.unread {
			reads++
		}
		if got := c.restTime(reads); got != row.want {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
}
