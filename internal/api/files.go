package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/filesystem"
)

// fileTransfer is /files: contents of files, and trees as archives, over plain
// HTTP.
type fileTransfer struct{ Config }

func (t *fileTransfer) route(mux *http.ServeMux) {
	mux.Handle("GET /files", t.handler(opRead, t.get)) // and HEAD
	mux.Handle("POST /files", t.handler(opWrite, t.post))
	mux.Handle("PATCH /files", t.handler(opWrite, t.patch))
	mux.Handle("POST /files/compose", http.HandlerFunc(t.compose))
}

// handler answers the errors of serve, which runs for the user that the
// request acts for.
func (t *fileTransfer) handler(operation string, serve func(http.ResponseWriter, *http.Request, *filesystem.View) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		acct, err := t.authorizeFiles(r, operation)
		if err == nil {
			err = t.threads.within(r.Context(), t.asUser(acct), func() error { return serve(w, r, t.view(acct)) })
		}
		if err != nil {
			t.fail(w, r, err)
		}
	})
}

// cutOffError is an error of a response that has begun. All that can be done is
// to cut it off, so that nobody takes it for whole.
type cutOffError struct{ error }

func (e cutOffError) Unwrap() error { return e.error }

// fail answers err, or cuts the response off.
func (t *fileTransfer) fail(w http.ResponseWriter, r *http.Request, err error) {
	if cut := (cutOffError{}); errors.As(err, &cut) {
		if !clientGone(r.Context(), err) {
			t.Log.ErrorContext(r.Context(), "download broke off", "path", r.URL.Query().Get("path"), "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	status := statusOf(err)
	if status == http.StatusInternalServerError && !clientGone(r.Context(), err) {
		t.Log.ErrorContext(r.Context(), "file request", "method", r.Method, "path", r.URL.Query().Get("path"), "error", err)
	}
	// What they say is of contents that are not sent.
	for _, name := range []string{"Content-Encoding", "Content-Disposition", "Etag", "Last-Modified", "Accept-Ranges"} {
		w.Header().Del(name)
	}
	httpError(w, status, err.Error())
}

// clientGone tells whether err is that the client of the request went away.
func clientGone(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// statusError is an error that has its status already.
type statusError struct {
	status int
	error
}

func (e statusError) Unwrap() error { return e.error }

// badRequest is an error of the caller's.
func badRequest(format string, args ...any) error {
	return statusError{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

// flagIn reads a boolean of the query; absent means false.
func flagIn(query url.Values, name string) (bool, error) {
	value := query.Get(name)
	if value == "" {
		return false, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, badRequest("%s=%q is neither true nor false", name, value)
	}
	return on, nil
}
