package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
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
		"expectation":       {"GET / HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n", 417},
		"version":           {"GET / HTTP/4.7\r\nHost: x\r\n\r\n", 505},
		"after another":     {"GET / HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n", 400},
		"large header":      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n", 431},
	} {
		t.Run(name, func(t *testing.T) {
			br := dial(t, s, tc.request)
			res, err := http.ReadResponse(br, nil)
			if err == nil && !res.Close { // to what came before
				_, _ = io.Copy(io.Discard, res.Body)
				res, err = http.ReadResponse(br, nil)
			}
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

// TestAnswersAreNoRefusals checks that what a handler answers stays as it is,
// wherever the pieces begin that it is written in.
func TestAnswersAreNoRefusals(t *testing.T) {
	const text = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nmine"
	long := strings.Repeat(text, 1000)
	answers := map[string]http.HandlerFunc{
		"closing": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, text)
		},
		"flushed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(long)))
			w.WriteHeader(http.StatusBadRequest)
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, long)
		},
	}
	for name, answer := range answers {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %v", name, h2), func(t *testing.T) {
				leaktest.Check(t)
				s := serve(t, answer, quiet())
				hc := client(t, h2)
				for range 2 { // on a fresh connection, and on one that was used
					res := get(t, hc, s, "/")
					if got := body(t, res); res.StatusCode != 400 || got != text && got != long {
						t.Errorf("%s: %d bytes, %.80q", res.Status, len(got), got)
					}
				}
			})
		}
	}
}
