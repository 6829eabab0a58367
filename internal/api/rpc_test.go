package api

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestBasicUser(t *testing.T) {
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, row := range []struct {
		header, name string
		fails        bool
	}{
		{"", "", false},
		{basic("user:"), "user", false},
		{basic("user:password"), "user", false},
		{basic("user"), "user", false},
		{basic(":"), "", false},
		{basic("a:b:c"), "a", false},
		{"basic dXNlcjo=", "user", false},
		{"BASIC   dXNlcjo=  ", "user", false},
		{"Bearer dXNlcjo=", "", false},
		{"Basic", "", false},
		{"Basic %%%", "", true},
		{"Basic dXNlcjo", "", true}, // without its padding
	} {
		name, err := basicUser(row.header)
		if name != row.name || (err != nil) != row.fails {
			t.Errorf("%q: %q, %v", row.header, name, err)
		}
	}
}

func FuzzBasicUser(f *testing.F) {
	for _, s := range []string{"", "Basic dXNlcjo=", "Basic ", "Bearer x", "basic ====", "Basic \x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		name, err := basicUser(header)
		if err != nil && name != "" || strings.Contains(name, ":") {
			t.Errorf("%q: %q, %v", header, name, err)
		}
		// What a client encodes comes back.
		sent, _, _ := strings.Cut(header, ":")
		back, err := basicUser("Basic " + base64.StdEncoding.EncodeToString([]byte(sent+":")))
		if err != nil || back != sent {
			t.Errorf("sent %q, got %q, %v", sent, back, err)
		}
	})
}

func TestKeepalive(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": defaultKeepalive, "50": 50 * time.Second, "1": time.Second, "0": defaultKeepalive, "-1": defaultKeepalive,
		"1.5": defaultKeepalive, "soon": defaultKeepalive, "86400": 24 * time.Hour, "86401": 24 * time.Hour,
		"9223372036854775807": 24 * time.Hour, "9223372036854775808": defaultKeepalive,
	} {
		h := http.Header{}
		if value != "" {
			h.Set("Keepalive-Ping-Interval", value)
		}
		if got := keepalive(h); got != want {
			t.Errorf("%q: %v, expected %v", value, got, want)
		}
	}
}

func TestRPCContentType(t *testing.T) {
	for ct, want := range map[string]bool{
		"application/json": true, "application/json; charset=utf-8": true, "application/json ;charset=utf-8": true,
		"application/proto": true, "application/connect+json": true, "application/connect+proto": true,
		"application/grpc": true, "application/grpc+proto": true, "application/grpc-web": true,
		"application/grpc-web+proto": true, "application/grpc-web-text": true,
		"Application/JSON": true, "application/connect+JSON": true, "APPLICATION/GRPC": true,
		"": false, "text/plain": false, "application/xml": false, "application/octet-stream": false,
		"multipart/form-data": false, ";application/json": false,
	} {
		if got := rpcContentType(ct); got != want {
			t.Errorf("%q: %v", ct, got)
		}
	}
}

// TestZeroTimeout checks that a timeout of zero is taken for none, and any
// other left alone.
func TestZeroTimeout(t *testing.T) {
	for _, row := range []struct{ name, value, left string }{
		{"Connect-Timeout-Ms", "0", ""},
		{"Connect-Timeout-Ms", "000", ""},
		{"Connect-Timeout-Ms", "1", "1"},
		{"Connect-Timeout-Ms", "10", "10"},
		{"Connect-Timeout-Ms", "soon", "soon"},
		{"Grpc-Timeout", "0m", ""},
		{"Grpc-Timeout", "0S", ""},
		{"Grpc-Timeout", "00000000n", ""},
		{"Grpc-Timeout", "10m", "10m"},
		{"Grpc-Timeout", "1H", "1H"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/x", nil)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(row.name, row.value)
		called := false
		rpcOnly(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			called = true
			if got := r.Header.Get(row.name); got != row.left {
				t.Errorf("%s %q: %q is left", row.name, row.value, got)
			}
		})).ServeHTTP(httptest.NewRecorder(), r)
		if !called {
			t.Errorf("%s %q was refused", row.name, row.value)
		}
	}
}

// TestJSONStatus checks which answers of an RPC handler get our body.
func TestJSONStatus(t *testing.T) {
	for _, row := range []struct {
		name, contentType string
		status            int
		replaced          bool
	}{
		{"success", "application/json", 200, false},
		{"an RPC's error", "application/json", 404, false},
		{"a gRPC answer", "application/grpc", 200, false},
		{"plain text", "text/plain", 404, true},
		{"nothing", "", 415, true},
		{"less than an error", "", 302, false},
	} {
		rec := httptest.NewRecorder()
		w := &jsonStatus{ResponseWriter: rec, r: httptest.NewRequest(http.MethodPost, "/some/path", nil)}
		if row.contentType != "" {
			w.Header().Set("Content-Type", row.contentType)
		}
		w.WriteHeader(row.status)
		if _, err := io.WriteString(w, "theirs"); err != nil {
			t.Error(err)
		}
		if rec.Code != row.status {
			t.Errorf("%s: status %d", row.name, rec.Code)
		}
		var e struct{ Code int }
		isOurs := json.Unmarshal(rec.Body.Bytes(), &e) == nil && e.Code == row.status
		if isOurs != row.replaced || row.replaced == strings.Contains(rec.Body.String(), "theirs") {
			t.Errorf("%s: body %q", row.name, rec.Body)
		}
	}
}
