package server

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/wrenn/envd/internal/leaktest"
)

// TestUnreadableRequests checks that what net/http answers by itself has the
// form of all other errors.
func TestUnreadableRequests(t *testing.T) {
	leaktest.Check(t)
	s := serve(t, http.NotFoundHandler(), quiet())
	for name, tc := range map[string]struct {
		request string
		code    int
	}{
		"nonsense":          {"hello, is this the right number?\r\n\r\n", 400},
		"no host":           {"GET / HTTP/1.1\r\n\r\n", 400},
		"bad header":        {"GET / HTTP/1.1\r\nHost: x\r\na b: c\r\n\r\n", 400},
		"transfer encoding": {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
		"version":           {"GET / HTTP/4.7\r\nHost: x\r\n\r\n", 505},
		"large header":      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n", 431},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := http.ReadResponse(bufio.NewReader(dial(t, s, tc.request)), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			var refused struct {
				Code    int
				Message string
			}
			if err != nil || json.Unmarshal(body, &refused) != nil {
				t.Fatalf("%q, %v", body, err)
			}
			if res.StatusCode != tc.code || refused.Code != tc.code || refused.Message == "" || strings.HasPrefix(refused.Message, "4") ||
				res.Header.Get("Content-Type") != "application/json" || !res.Close {
				t.Errorf("%s, %v: %s", res.Status, res.Header, body)
			}
		})
	}
}

// TestAnswersAreNoRefusals checks that a handler's answer stays as it is.
func TestAnswersAreNoRefusals(t *testing.T) {
	leaktest.Check(t)
	const text = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nmine"
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, text)
	}), quiet())
	res := get(t, client(t, false), s, "/")
	if got := body(t, res); res.StatusCode != 400 || got != text {
		t.Errorf("%s: %q", res.Status, got)
	}
}
