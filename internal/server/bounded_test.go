package server

import (
	"errors"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// TestIdleMakeRoom checks that connections which are idle go when others wait, and
// busy ones stay.
func TestIdleMakeRoom(t *testing.T) {
	leaktest.Check(t)
	st := newStream()
	s := open(t, st, quiet())
	s.conns.crowded = 200 * time.Millisecond
	for range cap(s.conns.places) - 3 { // one is taken before there is somebody to accept
		s.conns.places <- struct{}{}
	}
	run(t, s)
	busy := get(t, client(t, false), s, "/stream")
	for range 5 {
		_ = body(t, get(t, client(t, false), s, "/")) // and it keeps its connection
	}
	if n := s.open(); n > 3 {
		t.Errorf("%d connections for 3 places", n)
	}
	st.release <- struct{}{}
	if got := body(t, busy); got != "hello whole" {
		t.Errorf("the stream got %q", got)
	}
}

// TestConnectionsBounded checks that a connection too many waits until another
// ends, and that one that waits does not keep the server from its end.
func TestConnectionsBounded(t *testing.T) {
	leaktest.Check(t)
	s := open(t, http.NotFoundHandler(), quiet())
	for range cap(s.conns.places) - 2 {
		s.conns.places <- struct{}{}
	}
	run(t, s)
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	answers := func(c io.Reader) bool {
		_, err := c.Read(make([]byte, 1))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return err == nil
	}
	first, second := dialed(t, s, request), dialed(t, s, request)
	if !answers(first) || !answers(second) {
		t.Fatal("no answer")
	}
	third := dialed(t, s, request)
	if err := third.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if answers(third) {
		t.Error("one too many is served")
	}
	if err := errors.Join(third.SetReadDeadline(time.Now().Add(limit)), first.Close()); err != nil {
		t.Fatal(err)
	}
	if !answers(third) {
		t.Error("a free place stays empty")
	}
	dialed(t, s, request)
	if err := s.Close(t.Context(), nil); err != nil {
		t.Error(err)
	} // and what run has begun ends
}
