package server

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// refuseUnread answers 401 without a look at the body, and "/said" at once.
func refuseUnread(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "2")
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, "no")
	if r.URL.Path == "/said" {
		rc := http.NewResponseController(w)
		_ = errors.Join(rc.EnableFullDuplex(), rc.Flush())
	}
}

const unread = " HTTP/1.1\r\nHost: x\r\nContent-Length: 200\r\n\r\nthe first part"

// TestUnreadBodies checks that who does not send the body of a refused request
// has no connection for long, that the answer comes all the same, and that what
// comes late is no request of its own.
func TestUnreadBodies(t *testing.T) {
	for _, path := range []string{"/", "/said"} {
		t.Run(path, func(t *testing.T) {
			leaktest.Check(t)
			s := open(t, http.HandlerFunc(refuseUnread), quiet())
			s.conns.unread = 100 * time.Millisecond
			run(t, s)
			began := time.Now()
			conn := dialed(t, s, "POST "+path+unread)
			br := bufio.NewReader(conn)
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != http.StatusUnauthorized {
				t.Fatalf("%v, %v", res, err)
			}
			if text := body(t, res); text != "no" {
				t.Errorf("%q", text)
			}
			if rest, err := io.ReadAll(br); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the answer: %q, %v", rest, err)
			}
			if took := time.Since(began); took > 2*goneCheck {
				t.Errorf("the connection was there for %v", took)
			}
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			await(t, "no connection", func() bool { return s.open() == 0 })
		})
	}
}

// TestUnreadBodiesOfOthers is about requests that no handler gets to see.
func TestUnreadBodiesOfOthers(t *testing.T) {
	for request, status := range map[string]int{
		"OPTIONS *" + unread: http.StatusOK,
		"POST /" + strings.Replace(unread, "Host: x", "Host: x\r\nExpect: a miracle", 1): http.StatusExpectationFailed,
	} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			leaktest.Check(t)
			s := open(t, http.HandlerFunc(refuseUnread), quiet())
			s.conns.unread = 100 * time.Millisecond
			run(t, s)
			began := time.Now()
			br := dial(t, s, request)
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != status {
				t.Fatalf("%v, %v", res, err)
			}
			_ = body(t, res)
			if rest, err := io.ReadAll(br); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the answer: %q, %v", rest, err)
			}
			if took := time.Since(began); took > 2*goneCheck {
				t.Errorf("the connection was there for %v", took)
			}
		})
	}
}

// TestUnreadBodyArrives checks that a connection stays when the body that nobody
// wanted is there in time.
func TestUnreadBodyArrives(t *testing.T) {
	leaktest.Check(t)
	s := serve(t, http.HandlerFunc(refuseUnread), quiet())
	conn := dialed(t, s, "")
	br := bufio.NewReader(conn)
	for range 3 {
		if _, err := io.WriteString(conn, "POST /"+unread); err != nil {
			t.Fatal(err)
		}
		time.Sleep(goneCheck + 100*time.Millisecond) // past one check
		if _, err := io.WriteString(conn, strings.Repeat("x", 200-len("the first part"))); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != http.StatusUnauthorized || res.Close {
			t.Fatalf("%v, %v", res, err)
		}
		_ = body(t, res)
	}
}
