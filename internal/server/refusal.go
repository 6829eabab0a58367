package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// answering marks the connection of a request until it is idle again: what is
// written there is a handler's answer, whatever it looks like.
func answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok {
			c.answering.Store(true)
		}
		next.ServeHTTP(w, r)
	})
}

// refusalHead is between the status line and the text of the answers that
// net/http gives by itself to what it cannot read as a request over HTTP/1.1.
var refusalHead = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// expectation starts the answer, which has no text, to an Expect header of
// anything but "100-continue".
var expectation = []byte("HTTP/1.1 417 Expectation Failed\r\n")

// refusal is p, which net/http writes at once, as the same answer in the form
// that all other errors have. It is nil when p is nothing of the kind.
func refusal(p []byte) []byte {
	if bytes.HasPrefix(p, expectation) {
		return jsonRefusal("417 Expectation Failed", "unknown expectation: only 100-continue is met")
	}
	line, is := bytes.CutPrefix(p, []byte("HTTP/1.1 "))
	line, text, found := bytes.Cut(line, refusalHead)
	if !is || !found || bytes.ContainsAny(line, "\r\n") || len(line) < 4 {
		return nil
	}
	return jsonRefusal(string(line), string(bytes.TrimPrefix(text, line[:4])))
}

// jsonRefusal is the answer with that status line and message, or nil where the
// line is none.
func jsonRefusal(line, text string) []byte {
	code, err := strconv.Atoi(line[:3])
	if err != nil {
		return nil
	}
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{code, text})
	if err != nil {
		return nil
	}
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", line, len(body), body)
}
