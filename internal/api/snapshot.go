package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/wrenn/envd/internal/process"
	"github.com/wrenn/envd/internal/snapshot"
)

const (
	pathInit     = "/init"
	pathPrepare  = "/snapshot/prepare"
	pathSnapshot = "/snapshot"

	// maxPrepareBody bounds what POST /snapshot/prepare reads, in bytes.
	maxPrepareBody = 64 << 10
	// Of a freeze: how long to look whether the workload has stopped, and when
	// the watchdog thaws it; without a wish of the caller's, and at most.
	defaultFreezeWait = 500 * time.Millisecond
	mostFreezeWait    = 10 * time.Second
	defaultThaw       = time.Minute
	mostThaw          = time.Hour
)

// mountSnapshot adds the routes of snapshots.
func (c Config) mountSnapshot(mux *http.ServeMux) {
	if c.Snapshot == nil {
		return
	}
	mux.HandleFunc("GET "+pathSnapshot, c.snapshotStatus)
	mux.Handle("POST "+pathPrepare, c.hostOnly(http.HandlerFunc(c.snapshotPrepare)))
}

// returning brings a prepared guest back with the first request from outside,
// whichever it is, but for another prepare. To a guest that runs it costs one
// atomic load.
func (c Config) returning(next http.Handler) http.Handler {
	if c.Snapshot == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.Snapshot.Away() && !c.fromGuest(r) {
			switch r.URL.Path {
			case pathPrepare:
			case pathInit:
				// It does the whole, in its own order, unless it is refused.
				defer c.Snapshot.Return(false)
			case pathSnapshot:
				r = r.WithContext(context.WithValue(r.Context(), statusKey{}, c.Snapshot.Status()))
				fallthrough
			case "/health", "/metrics":
				c.Snapshot.Return(false)
			default:
				c.Snapshot.Return(true)
			}
		}
		next.ServeHTTP(w, r)
	})
}

type statusKey struct{}

// snapshotStatus answers GET /snapshot with the state that the request found.
func (c Config) snapshotStatus(w http.ResponseWriter, r *http.Request) {
	status, found := r.Context().Value(statusKey{}).(snapshot.Status)
	if !found {
		status = c.Snapshot.Status()
	}
	writeJSON(w, struct {
		State      string `json:"state"`
		Generation uint64 `json:"generation"`
		Pending    bool   `json:"pending"`
		Frozen     bool   `json:"frozen"`
	}{status.State.String(), status.Generation, status.Pending, status.Frozen})
}

// prepareRequest is the body of POST /snapshot/prepare, which may be missing.
type prepareRequest struct {
	FreezeWorkload bool   `json:"freeze_workload"`
	MaxWaitMs      *int64 `json:"max_wait_ms"`
	ThawAfterMs    *int64 `json:"thaw_after_ms"`
}

// prepareReport answers a prepare that was to freeze the workload.
type prepareReport struct {
	Generation uint64         `json:"generation"`
	Synced     bool           `json:"synced"`
	Workload   workloadReport `json:"workload"`
}

type workloadReport struct {
	State    snapshot.Outcome `json:"state"`
	Groups   int              `json:"groups"`
	Frozen   int              `json:"frozen"`
	Failed   int              `json:"failed"`
	WaitedMs int64            `json:"waited_ms"`
}

// snapshotPrepare answers POST /snapshot/prepare once the machine may be
// frozen. That its client is gone does not stop it: the host may freeze all the
// same.
func (c Config) snapshotPrepare(w http.ResponseWriter, r *http.Request) {
	freeze, err := readFreeze(r.Body)
	if err != nil {
		httpError(w, http.StatusBadRequest, err.Error())
		return
	}
	report := c.Snapshot.Prepare(freeze)
	h := w.Header()
	h.Set("Connection", "close") // also when somebody has brought the guest back by now
	if freeze.Wanted {
		writeJSON(w, prepareReport{report.Generation, report.Synced, workloadReport{
			State:  report.Outcome,
			Groups: report.Frozen.Groups, Frozen: report.Frozen.Frozen, Failed: report.Frozen.Failed,
			WaitedMs: report.Waited.Milliseconds(),
		}})
	} else {
		h.Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	}
	_ = http.NewResponseController(w).Flush() // a client that is gone
}

// readFreeze reads what a prepare asks for; no body asks for nothing.
func readFreeze(body io.Reader) (f snapshot.Freeze, err error) {
	b, err := io.ReadAll(io.LimitReader(body, maxPrepareBody+1))
	if err != nil {
		return f, fmt.Errorf("read body: %w", err)
	}
	if len(b) == 0 {
		return f, nil
	}
	if len(b) > maxPrepareBody {
		return f, fmt.Errorf("body exceeds %d bytes", maxPrepareBody)
	}
	var req prepareRequest
	if err := json.Unmarshal(b, &req); err != nil {
		return f, fmt.Errorf("body is not the JSON of a prepare: %w", err)
	}
	f.Wanted = req.FreezeWorkload
	if f.Wait, err = milliseconds("max_wait_ms", req.MaxWaitMs, defaultFreezeWait, mostFreezeWait); err != nil {
		return f, err
	}
	f.Thaw, err = milliseconds("thaw_after_ms", req.ThawAfterMs, defaultThaw, mostThaw)
	return f, err
}

func milliseconds(name string, v *int64, absent, most time.Duration) (time.Duration, error) {
	switch {
	case v == nil:
		return absent, nil
	case *v < 0 || *v > most.Milliseconds():
		return 0, fmt.Errorf("%s is not between 0 and %d", name, most.Milliseconds())
	default:
		return time.Duration(*v) * time.Millisecond, nil
	}
}

// start starts spec. A request that met a prepare on its way brings the guest
// back as any does that comes after; one from inside the guest is refused.
func (c Config) start(ctx context.Context, spec *process.Spec) (*process.Process, *process.Cursor, error) {
	for {
		p, cursor, err := c.Processes.Start(spec)
		switch {
		case !errors.Is(err, snapshot.ErrPrepared), c.FromGuest != nil && c.FromGuest(ctx):
			return p, cursor, err //nolint:wrapcheck // the caller gives it its code
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		}
		c.Snapshot.Return(true)
	}
}

// writeJSON answers 200 with v, which no cache may keep.
func writeJSON(w http.ResponseWriter, v any) {
	body, _ := json.Marshal(v) // cannot fail
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the client is gone: nothing to tell
}
