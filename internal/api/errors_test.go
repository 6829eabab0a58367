package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/filesystem"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/internal/watch"
)

// TestErrorTable checks every row, bare and wrapped.
func TestErrorTable(t *testing.T) {
	for _, row := range []struct {
		err  error
		code connect.Code
	}{
		{process.ErrUnknown, connect.CodeNotFound},
		{process.ErrFinished, connect.CodeNotFound},
		{process.ErrBeyondEnd, connect.CodeOutOfRange},
		{process.ErrStdinClosed, connect.CodeFailedPrecondition},
		{process.ErrWrongInput, connect.CodeFailedPrecondition},
		{process.ErrClosed, connect.CodeUnavailable},
		{errNoTurn, connect.CodeUnavailable},
		{guest.ErrUnknownUser, connect.CodeUnauthenticated},
		{filesystem.ErrInvalid, connect.CodeInvalidArgument},
		{filesystem.ErrIsDirectory, connect.CodeInvalidArgument},
		{filesystem.ErrNotDirectory, connect.CodeInvalidArgument},
		{filesystem.ErrNotRegular, connect.CodeInvalidArgument},
		{filesystem.ErrNoSpace, connect.CodeResourceExhausted},
		{watch.ErrNotFound, connect.CodeNotFound},
		{watch.ErrRootRemoved, connect.CodeNotFound},
		{watch.ErrUnknownWatcher, connect.CodeNotFound},
		{watch.ErrNotDirectory, connect.CodeInvalidArgument},
		{watch.ErrNetworkMount, connect.CodeInvalidArgument},
		{watch.ErrWatchLimit, connect.CodeResourceExhausted},
		{watch.ErrOverflow, connect.CodeDataLoss},
		{watch.ErrClosed, connect.CodeUnavailable},
		{unix.ENOENT, connect.CodeNotFound},
		{unix.EEXIST, connect.CodeAlreadyExists},
		{unix.EACCES, connect.CodePermissionDenied},
		{unix.EPERM, connect.CodePermissionDenied},
		{unix.EMFILE, connect.CodeResourceExhausted},
		{unix.ENFILE, connect.CodeResourceExhausted},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
		{context.Canceled, connect.CodeCanceled},
		{&process.StartError{Kind: process.Invalid}, connect.CodeInvalidArgument},
		{&process.StartError{Kind: process.NoCommand}, connect.CodeNotFound},
		{&process.StartError{Kind: process.Permission}, connect.CodePermissionDenied},
		{&process.StartError{Kind: process.Exhausted}, connect.CodeResourceExhausted},
		{&process.StartError{Kind: process.Unmet}, connect.CodeFailedPrecondition},
		{&process.StartError{Kind: process.Internal}, connect.CodeInternal},
		{&process.TooSlowError{Offset: 7}, connect.CodeAborted},
		{invalid("text"), connect.CodeInvalidArgument},
		{errors.New("anything else"), connect.CodeInternal},
	} {
		for _, err := range []error{row.err, fmt.Errorf("operation: %w", row.err)} {
			got := rpcError(err)
			if connect.CodeOf(got) != row.code {
				t.Errorf("%v: %v, expected %v", err, connect.CodeOf(got), row.code)
			}
			if !errors.Is(got, row.err) {
				t.Errorf("%v is lost in %v", row.err, got)
			}
		}
	}
	if rpcError(nil) != nil {
		t.Error("nil is an error")
	}
}

// TestResumePoint checks the detail that a client continues by.
func TestResumePoint(t *testing.T) {
	coded := (*connect.Error)(nil)
	if !errors.As(rpcError(&process.TooSlowError{Offset: 1 << 40}), &coded) || len(coded.Details()) != 1 {
		t.Fatalf("got %v", coded)
	}
	v, err := coded.Details()[0].Value()
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := v.(*pb.ResumePoint); !ok || p.Offset != 1<<40 {
		t.Errorf("detail %v", v)
	}
}

// TestStar checks that a request for * is refused, whatever its method: it is
// no path, and must not be redirected to one.
func TestStar(t *testing.T) {
	r := httptest.NewRequest("PRI", "/", nil)
	r.RequestURI, r.URL.Path = "*", "*"
	w := httptest.NewRecorder()
	jsonErrors(http.NewServeMux()).ServeHTTP(w, r)
	if w.Code != http.StatusBadRequest || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}
}
