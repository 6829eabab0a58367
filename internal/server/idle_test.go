package server

import (
	"net/http"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/wrenn/envd/internal/leaktest"
)

// TestIdleConnectionsClosed checks that a connection goes when it has been
// idle for long enough, and that one with a request stays.
func TestIdleConnectionsClosed(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		leaktest.Check(t)
		st := newStream()
		s := open(t, st, quiet())
		s.conns.patience = 300 * time.Millisecond
		run(t, s)
		busy, idle := client(t, h2), client(t, h2)
		res := get(t, busy, s, "/stream")
		began := time.Now()
		_ = body(t, get(t, idle, s, "/"))
		await(t, "one connection is left", func() bool { return s.open() == 1 })
		if lived := time.Since(began); lived < s.conns.patience {
			t.Errorf("HTTP/2 %v: closed after %v", h2, lived)
		}
		time.Sleep(2 * s.conns.patience)
		st.release <- struct{}{}
		if got := body(t, res); got != "hello whole" {
			t.Errorf("HTTP/2 %v: the stream got %q", h2, got)
		}
		// Clients whose connection was closed meanwhile make another one.
		_ = body(t, get(t, idle, s, "/"))
	}
}

// TestCutOffConnectionForgotten checks that nothing is kept of a connection
// that was cut off amid a request.
func TestCutOffConnectionForgotten(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		leaktest.Check(t)
		st := newStream()
		conns := make(chan weak.Pointer[conn], 1)
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conns <- weak.Make(r.Context().Value(connKey{}).(*conn))
			st.ServeHTTP(w, r)
		}), quiet())
		res := get(t, client(t, h2), s, "/stream")
		ours := <-conns
		_ = ours.Value().socket.Close()
		<-st.causes
		_ = res.Body.Close()
		await(t, "the connection is forgotten", func() bool {
			runtime.GC()
			return ours.Value() == nil
		})
	}
}
