package api

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/filesystem"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/internal/snapshot"
	"github.com/wrenn/envd/internal/watch"
)

// startCodes maps why a program did not start to a code.
var startCodes = map[process.StartKind]connect.Code{
	process.Invalid:    connect.CodeInvalidArgument,
	process.NoCommand:  connect.CodeNotFound,
	process.Permission: connect.CodePermissionDenied,
	process.Exhausted:  connect.CodeResourceExhausted,
	process.Unmet:      connect.CodeFailedPrecondition,
	process.Internal:   connect.CodeInternal,
}

// codes is the table of errors; the first that matches counts.
var codes = []struct {
	is   error
	code connect.Code
}{
	{process.ErrUnknown, connect.CodeNotFound},
	{process.ErrFinished, connect.CodeNotFound},
	{process.ErrBeyondEnd, connect.CodeOutOfRange},
	{process.ErrStdinClosed, connect.CodeFailedPrecondition},
	{process.ErrWrongInput, connect.CodeFailedPrecondition},
	{process.ErrClosed, connect.CodeUnavailable},
	{snapshot.ErrPrepared, connect.CodeUnavailable},
	{errNoTurn, connect.CodeUnavailable},
	{snapshot.ErrRestored, connect.CodeAborted},
	{guest.ErrUnknownUser, connect.CodeUnauthenticated},
	{filesystem.ErrInvalid, connect.CodeInvalidArgument},
	{filesystem.ErrIsDirectory, connect.CodeInvalidArgument},
	{filesystem.ErrNotDirectory, connect.CodeInvalidArgument},
	{filesystem.ErrNotRegular, connect.CodeInvalidArgument},
	{filesystem.ErrNoSpace, connect.CodeResourceExhausted},
	{watch.ErrRootRemoved, connect.CodeNotFound},
	{watch.ErrUnknownWatcher, connect.CodeNotFound},
	{watch.ErrNotDirectory, connect.CodeInvalidArgument},
	{watch.ErrNetworkMount, connect.CodeInvalidArgument},
	{watch.ErrWatchLimit, connect.CodeResourceExhausted},
	{watch.ErrOverflow, connect.CodeDataLoss},
	{watch.ErrClosed, connect.CodeUnavailable},
	{fs.ErrNotExist, connect.CodeNotFound},
	{fs.ErrExist, connect.CodeAlreadyExists},
	{fs.ErrPermission, connect.CodePermissionDenied},
	{unix.EMFILE, connect.CodeResourceExhausted},
	{unix.ENFILE, connect.CodeResourceExhausted},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
	{context.Canceled, connect.CodeCanceled},
}

// statuses is the table of HTTP errors; the first that matches counts.
var statuses = []struct {
	is     error
	status int
}{
	{errUnauthorized, http.StatusUnauthorized},
	{guest.ErrUnknownUser, http.StatusUnauthorized},
	{filesystem.ErrNoSpace, http.StatusInsufficientStorage},
	{filesystem.ErrOffsetPastEnd, http.StatusConflict},
	{filesystem.ErrMoved, http.StatusConflict},
	{filesystem.ErrInvalid, http.StatusBadRequest},
	{filesystem.ErrIsDirectory, http.StatusBadRequest},
	{filesystem.ErrNotDirectory, http.StatusBadRequest},
	{filesystem.ErrNotRegular, http.StatusBadRequest},
	{errDigest, http.StatusBadRequest},
	{filesystem.ErrArchive, http.StatusBadRequest},
	{filesystem.ErrSource, http.StatusBadRequest},
	{fs.ErrNotExist, http.StatusNotFound},
	{fs.ErrPermission, http.StatusForbidden},
	{fs.ErrExist, http.StatusConflict},
	{unix.ETXTBSY, http.StatusConflict}, // a program that runs
	{errNoTurn, http.StatusServiceUnavailable},
}

// statusOf is the HTTP status of err.
func statusOf(err error) int {
	if known := (statusError{}); errors.As(err, &known) {
		return known.status
	}
	for _, row := range statuses {
		if errors.Is(err, row.is) {
			return row.status
		}
	}
	return http.StatusInternalServerError
}

// rpcError gives err its code. One that has a code already keeps it.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	if coded := (*connect.Error)(nil); errors.As(err, &coded) {
		return err
	}
	if start := (*process.StartError)(nil); errors.As(err, &start) {
		return connect.NewError(startCodes[start.Kind], err)
	}
	if slow := (*process.TooSlowError)(nil); errors.As(err, &slow) {
		return aborted(err, slow.Offset)
	}
	for _, row := range codes {
		if errors.Is(err, row.is) {
			return connect.NewError(row.code, err)
		}
	}
	return connect.NewError(connect.CodeInternal, err)
}

// aborted ends a stream that can be continued at offset.
func aborted(err error, offset int64) error {
	coded := connect.NewError(connect.CodeAborted, err)
	if d, detailErr := connect.NewErrorDetail(&pb.ResumePoint{Offset: uint64(offset)}); detailErr == nil {
		coded.AddDetail(d)
	}
	return coded
}

// invalid is an error of the caller's.
func invalid(text string) error {
	return connect.NewError(connect.CodeInvalidArgument, errors.New(text))
}

// httpError answers status with the JSON body that every HTTP error has.
func httpError(w http.ResponseWriter, status int, message string) {
	body, _ := json.Marshal(struct { // cannot fail
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone: nothing to tell
}

// jsonErrors serves mux, with JSON instead of its own plain text for what it
// has no route for.
func jsonErrors(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI == "*" { // of an HTTP/2 preface that broke off; OPTIONS * is the server's
			w.Header().Set("Connection", "close")
			httpStatus(w, r, http.StatusBadRequest)
			return
		}
		h, pattern := mux.Handler(r)
		if pattern != "" {
			h.ServeHTTP(w, r) // mux.ServeHTTP would look for it again
			return
		}
		probe := statusProbe{header: make(http.Header)}
		h.ServeHTTP(&probe, r)
		if probe.status < http.StatusBadRequest {
			h.ServeHTTP(w, r) // to the clean form of a path: no error yet
			return
		}
		if allow := probe.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
		}
		httpStatus(w, r, probe.status)
	})
}

// httpStatus is httpError for what has no more to say than its status.
func httpStatus(w http.ResponseWriter, r *http.Request, status int) {
	httpError(w, status, http.StatusText(status)+": "+r.Method+" "+r.URL.Path)
}

// jsonStatus is the ResponseWriter of RPC handlers. What they refuse without
// an RPC's answer (an unknown method, the wrong kind of content type) they
// answer in plain text or with nothing at all; it gets our JSON instead.
type jsonStatus struct {
	http.ResponseWriter
	r        *http.Request
	replaced bool
}

func (w *jsonStatus) WriteHeader(status int) {
	if status < http.StatusBadRequest || rpcContentType(w.Header().Get("Content-Type")) {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.replaced = true
	httpStatus(w.ResponseWriter, w.r, status)
}

func (w *jsonStatus) Write(b []byte) (int, error) {
	if w.replaced {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *jsonStatus) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// statusProbe finds out what a handler would answer.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }
