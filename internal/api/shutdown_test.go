package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/guest"
)

func TestShutdown(t *testing.T) {
	type asked struct {
		grace   time.Duration
		restart bool
	}
	for _, tc := range []struct {
		name, body string
		status     int
		want       *asked
	}{
		{"nothing said", "", http.StatusNoContent, &asked{defaultGrace, false}},
		{"empty object", "{}", http.StatusNoContent, &asked{defaultGrace, false}},
		{"grace", `{"grace_ms": 1500}`, http.StatusNoContent, &asked{1500 * time.Millisecond, false}},
		{"no grace", `{"grace_ms": 0, "reboot": true}`, http.StatusNoContent, &asked{0, true}},
		{"negative", `{"grace_ms": -1}`, http.StatusBadRequest, nil},
		{"too long", `{"grace_ms": 1e12}`, http.StatusBadRequest, nil},
		{"no JSON", `now`, http.StatusBadRequest, nil},
		{"wrong type", `{"grace_ms": "1"}`, http.StatusBadRequest, nil},
		{"too large", `{"grace_ms": 1, "x": "` + strings.Repeat("x", maxShutdown) + `"}`, http.StatusBadRequest, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got *asked
			h := New(Config{Settings: guest.NewStore(guest.Settings{}), Log: slog.New(slog.DiscardHandler), Shutdown: func(grace time.Duration, restart bool) {
				got = &asked{grace, restart}
			}})
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/shutdown", strings.NewReader(tc.body)))
			if w.Code != tc.status || (got == nil) != (tc.want == nil) || got != nil && *got != *tc.want {
				t.Errorf("status %d %s, asked for %+v", w.Code, w.Body, got)
			}
		})
	}
}

// TestShutdownRefused checks who may not: a process of the guest, a caller
// without the token, and anybody where the daemon is an ordinary service.
func TestShutdownRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cfg    Config
		status int
	}{
		{"ordinary service", Config{}, http.StatusNotImplemented},
		{"guest", Config{FromGuest: func(context.Context) bool { return true }, Shutdown: unwanted(t)}, http.StatusForbidden},
		{"no token", Config{Settings: guest.NewStore(guest.Settings{Token: guest.NewToken("secret")}), Shutdown: unwanted(t)}, http.StatusUnauthorized},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.cfg.Settings == nil {
				tc.cfg.Settings = guest.NewStore(guest.Settings{})
			}
			tc.cfg.Log = slog.New(slog.DiscardHandler)
			w := httptest.NewRecorder()
			New(tc.cfg).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/shutdown", nil))
			if w.Code != tc.status {
				t.Errorf("status %d %s", w.Code, w.Body)
			}
		})
	}
}

func unwanted(t *testing.T) func(time.Duration, bool) {
	return func(time.Duration, bool) { t.Error("the machine is taken down") }
}
