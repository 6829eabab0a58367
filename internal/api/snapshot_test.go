package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/snapshot"
)

func TestReadFreeze(t *testing.T) {
	wanted := snapshot.Freeze{Wanted: true, Wait: defaultFreezeWait, Thaw: defaultThaw}
	for _, row := range []struct {
		body string
		want snapshot.Freeze
		err  string // part of it; "" for none
	}{
		{"", snapshot.Freeze{}, ""},
		{"{}", snapshot.Freeze{Wait: defaultFreezeWait, Thaw: defaultThaw}, ""},
		{`{"freeze_workload":true}`, wanted, ""},
		{`{"freeze_workload":true,"something":"new"}`, wanted, ""},
		{`{"freeze_workload":true,"max_wait_ms":0,"thaw_after_ms":1500}`, snapshot.Freeze{Wanted: true, Thaw: 1500 * time.Millisecond}, ""},
		{`{"freeze_workload":true,"max_wait_ms":10000,"thaw_after_ms":3600000}`, snapshot.Freeze{Wanted: true, Wait: mostFreezeWait, Thaw: mostThaw}, ""},
		{`{"max_wait_ms":-1}`, snapshot.Freeze{}, "max_wait_ms is not between 0 and 10000"},
		{`{"max_wait_ms":10001}`, snapshot.Freeze{}, "max_wait_ms"},
		{`{"thaw_after_ms":3600001}`, snapshot.Freeze{}, "thaw_after_ms"},
		{`{"freeze_workload":1}`, snapshot.Freeze{}, "not the JSON of a prepare"},
		{`[]`, snapshot.Freeze{}, "not the JSON of a prepare"},
		{`freeze`, snapshot.Freeze{}, "not the JSON of a prepare"},
		{strings.Repeat(" ", maxPrepareBody+1), snapshot.Freeze{}, "exceeds"},
	} {
		got, err := readFreeze(strings.NewReader(row.body))
		switch {
		case row.err == "" && (err != nil || got != row.want):
			t.Errorf("%.60q: %+v, %v", row.body, got, err)
		case row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)):
			t.Errorf("%.60q: error %v", row.body, err)
		}
	}
}

func FuzzReadFreeze(f *testing.F) {
	for _, s := range []string{"", "{}", `{"freeze_workload":true,"max_wait_ms":5,"thaw_after_ms":7}`, `{"max_wait_ms":1e99}`, "[", `{"max_wait_ms":null}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		freeze, err := readFreeze(strings.NewReader(body))
		if err == nil && (freeze.Wait < 0 || freeze.Wait > mostFreezeWait || freeze.Thaw < 0 || freeze.Thaw > mostThaw) {
			t.Errorf("%q: %+v", body, freeze)
		}
	})
}

// unfreezable is a workload without cgroups.
type unfreezable struct{}

func (unfreezable) Freeze(context.Context) (snapshot.Frozen, error) {
	return snapshot.Frozen{}, errors.New("no cgroups")
}
func (unfreezable) Thaw() error { return nil }

type guestKey struct{}

// snapshotConfig is a guest in which requests with guestKey come from inside.
func snapshotConfig(t *testing.T) Config {
	t.Helper()
	cfg := accessConfig(t, "")
	cfg.FromGuest = func(ctx context.Context) bool { return ctx.Value(guestKey{}) != nil }
	cfg.Snapshot = snapshot.New(snapshot.Config{
		Sync: func() error { return nil }, Shrink: func() {}, Workload: unfreezable{}, Log: slog.New(slog.DiscardHandler),
	})
	cfg.Restorer = cfg.Snapshot
	return cfg
}

func serveOne(t *testing.T, h http.Handler, method, path string, inside bool) *httptest.ResponseRecorder {
	t.Helper()
	ctx := t.Context()
	if inside {
		ctx = context.WithValue(ctx, guestKey{}, true)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, path, http.NoBody))
	return w
}

// TestFirstRequestBringsTheGuestBack checks which requests do: any from outside
// but another prepare, also one that is refused or finds no route.
func TestFirstRequestBringsTheGuestBack(t *testing.T) {
	cfg := snapshotConfig(t)
	h := New(cfg)
	for _, row := range []struct {
		method, path string
		inside       bool
		want         snapshot.State
	}{
		{"GET", "/health", false, snapshot.Running},
		{"GET", "/health", true, snapshot.Prepared},
		{"GET", "/snapshot", false, snapshot.Running},
		{"GET", "/snapshot", true, snapshot.Prepared},
		{"GET", "/nothing", false, snapshot.Running},
		{"POST", "/process.Process/Nothing", false, snapshot.Running},
		{"POST", "/process.Process/List", true, snapshot.Prepared},
		{"POST", "/init", false, snapshot.Running},
		{"POST", "/init", true, snapshot.Prepared},
		{"POST", "/snapshot/prepare", false, snapshot.Prepared},
		{"POST", "/snapshot/prepare", true, snapshot.Prepared}, // refused
	} {
		if w := serveOne(t, h, "POST", "/snapshot/prepare", false); w.Code != http.StatusNoContent ||
			w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Connection") != "close" || !w.Flushed {
			t.Fatalf("prepare: %d %v flushed %v", w.Code, w.Header(), w.Flushed)
		}
		w := serveOne(t, h, row.method, row.path, row.inside)
		if got := cfg.Snapshot.Status().State; got != row.want {
			t.Errorf("%s %s, inside %v: %v", row.method, row.path, row.inside, got)
		}
		if row.path == pathPrepare && row.inside && w.Code != http.StatusForbidden {
			t.Errorf("prepare from inside: %d", w.Code)
		}
	}
}

// TestSnapshotStatus checks that a request from outside learns the state that
// it found, although it brings the guest back.
func TestSnapshotStatus(t *testing.T) {
	cfg := snapshotConfig(t)
	h := New(cfg)
	status := func() (s struct {
		State           string
		Generation      uint64
		Pending, Frozen bool
	},
	) {
		w := serveOne(t, h, "GET", "/snapshot", false)
		if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%v: %s %v", err, w.Body, w.Header())
		}
		return s
	}
	if s := status(); s.State != "running" || s.Generation != 1 || s.Pending {
		t.Errorf("%+v", s)
	}
	cfg.Snapshot.Prepare(snapshot.Freeze{})
	if s := status(); s.State != "prepared" || s.Generation != 1 || !s.Pending {
		t.Errorf("%+v", s)
	}
	if s := status(); s.State != "running" || !s.Pending {
		t.Errorf("%+v", s)
	}
	cfg.Snapshot.Restore(t.Context(), false)
	if s := status(); s.State != "running" || s.Generation != 2 || s.Pending {
		t.Errorf("%+v", s)
	}
}

// TestPrepareBadBody checks that a prepare which is not understood does nothing.
func TestPrepareBadBody(t *testing.T) {
	cfg := snapshotConfig(t)
	w := httptest.NewRecorder()
	New(cfg).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/snapshot/prepare", strings.NewReader("freeze!")))
	if w.Code != http.StatusBadRequest || cfg.Snapshot.Status().Pending {
		t.Errorf("%d %s, %+v", w.Code, w.Body, cfg.Snapshot.Status())
	}
}

// TestPrepareReport checks what a host learns that asks for a freeze.
func TestPrepareReport(t *testing.T) {
	cfg := snapshotConfig(t) // without cgroups
	w := httptest.NewRecorder()
	New(cfg).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/snapshot/prepare", strings.NewReader(`{"freeze_workload":true}`)))
	const want = `{"generation":1,"synced":true,"workload":{"state":"unavailable","groups":0,"frozen":0,"failed":0,"waited_ms":0}}`
	if w.Code != http.StatusOK || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
