package server

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"

	connectcors "connectrpc.com/cors"
	"github.com/rs/cors"
)

// preflightSeconds is how long a browser may keep a preflight's answer.
const preflightSeconds = 7200

// Middleware wraps handler in what every request passes, outermost first:
// panics, the mark of an answer, CORS, clients that are gone, then "OPTIONS *".
func Middleware(handler http.Handler, log *slog.Logger) http.Handler {
	return recovered(answering(allowOrigins(noticeGone(allOptions(handler)))), log)
}

// allOptions answers "OPTIONS *", which asks only whether the server is there.
func allOptions(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions && r.RequestURI == "*" {
			w.Header().Set("Content-Length", "0")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// allowOrigins answers preflights and lets any page call: what guards the
// daemon is its token, not its origin.
func allowOrigins(next http.Handler) http.Handler {
	return cors.New(cors.Options{
		AllowedOrigins: []string{"*"},
		AllowedMethods: []string{
			http.MethodHead, http.MethodGet, http.MethodPost,
			http.MethodPut, http.MethodPatch, http.MethodDelete,
		},
		AllowedHeaders: []string{"*"},
		ExposedHeaders: append(connectcors.ExposedHeaders(),
			"Location", "Cache-Control", "X-Content-Type-Options"),
		MaxAge: preflightSeconds,
	}).Handler(next)
}

// recovered turns a handler's panic into a log entry and an error response: as
// PID 1 the daemon must not end. net/http would do the same but for the log.
func recovered(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
				panic(v)
			}
			log.ErrorContext(r.Context(), "handler panicked",
				"method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			// Whole or an error: cut the response off, whatever it held.
			panic(http.ErrAbortHandler)
		}()
		next.ServeHTTP(w, r)
	})
}
