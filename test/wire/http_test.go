package wire

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// everyDaemon runs a test with every daemon.
func everyDaemon(t *testing.T, test func(t *testing.T, d *daemon)) {
	t.Parallel()
	for _, d := range daemons {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			test(t, d)
		})
	}
}

// oneDaemon runs a test with the first daemon, for what has nothing to do with
// commands.
func oneDaemon(t *testing.T, test func(t *testing.T, d *daemon)) {
	t.Parallel()
	test(t, daemons[0])
}

// request makes one HTTP request.
func request(t *testing.T, hc *http.Client, method, url, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

func TestHealth(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		for name, hc := range map[string]*http.Client{"HTTP/1.1": http1(), "HTTP/2.0": http2()} {
			res, text := request(t, hc, "GET", d.base+"/health", "")
			if res.Proto != name || res.StatusCode != http.StatusOK ||
				res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s %s %v", res.Proto, res.Status, res.Header)
			}
			var h struct {
				Version  string
				Features []string
			}
			if err := json.Unmarshal([]byte(text), &h); err != nil || h.Version == "" {
				t.Errorf("%s: %v", text, err)
			}
			if d.cmd != nil && (h.Version != "0.9.0" || !slices.Contains(h.Features, "process.output_offsets")) {
				t.Errorf("health %+v", h)
			}
		}
	})
}

// TestHTTPErrors checks that every error is JSON with its status.
func TestHTTPErrors(t *testing.T) {
	const list, start = "/process.Process/List", "/process.Process/Start"
	rows := []struct {
		name, method, path, contentType string
		status                          int
		allow                           string
	}{
		{"no route", "GET", "/nothing", "", 404, ""},
		{"root", "GET", "/", "", 404, ""},
		{"wrong method", "POST", "/health", "", 405, "GET, HEAD"},
		{"delete", "DELETE", "/health", "", 405, "GET, HEAD"},
		{"unclean path", "GET", "//nothing//", "", 404, ""},
		{"unclean path, wrong method", "DELETE", "//health", "", 405, "GET, HEAD"},
		{"GET of an RPC", "GET", list, "", 405, "POST"},
		{"PUT of an RPC", "PUT", list, "application/json", 405, "POST"},
		{"no content type", "POST", list, "", 415, ""},
		{"text", "POST", list, "text/plain", 415, ""},
		{"unknown codec", "POST", list, "application/xml", 415, ""},
		{"unknown stream codec", "POST", start, "application/connect+xml", 415, ""},
		{"unary type for a stream", "POST", start, "application/json", 415, ""},
		{"stream type for a unary", "POST", list, "application/connect+json", 415, ""},
		{"unknown gRPC codec", "POST", list, "application/grpc+xml", 415, ""},
		{"no such method", "POST", "/process.Process/Nothing", "application/json", 404, ""},
		{"no such service", "POST", "/nothing.Nothing/List", "application/json", 404, ""},
	}
	everyDaemon(t, func(t *testing.T, d *daemon) {
		for proto, hc := range map[string]*http.Client{"1": http1(), "2": http2()} {
			for _, row := range rows {
				t.Run(row.name+"/"+proto, func(t *testing.T) {
					var headers []string
					if row.contentType != "" {
						headers = []string{"Content-Type", row.contentType}
					}
					res, text := request(t, hc, row.method, d.base+row.path, "{}", headers...)
					var e struct {
						Code    int
						Message string
					}
					err := json.Unmarshal([]byte(text), &e)
					if err != nil || res.StatusCode != row.status || e.Code != row.status || e.Message == "" ||
						res.Header.Get("Content-Type") != "application/json" {
						t.Errorf("%s %q %q, %v; expected %d", res.Status, res.Header.Get("Content-Type"), text, err, row.status)
					}
					if res.Header.Get("Allow") != row.allow {
						t.Errorf("Allow: %q, expected %q", res.Header.Get("Allow"), row.allow)
					}
				})
			}
		}
	})
}

// TestConnectErrorJSON checks the body of an RPC's error, which is Connect's.
func TestConnectErrorJSON(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		for _, ct := range []string{"application/json", "application/json; charset=utf-8"} {
			res, text := request(t, http1(), "POST", d.base+"/process.Process/SendSignal",
				`{"process":{"pid":1073741824},"signal":"SIGNAL_SIGTERM","unknownField":[1,{}]}`, "Content-Type", ct)
			var e struct{ Code, Message string }
			if err := json.Unmarshal([]byte(text), &e); err != nil || res.StatusCode != 404 ||
				e.Code != "not_found" || !strings.Contains(e.Message, "not found") {
				t.Errorf("%s: %s %s", ct, res.Status, text)
			}
		}
	})
}

func TestCORS(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		for _, method := range []string{"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"} {
			res, text := request(t, http1(), "OPTIONS", d.base+"/process.Process/Start", "",
				"Origin", "https://page.example", "Access-Control-Request-Method", method,
				"Access-Control-Request-Headers", "authorization,connect-protocol-version,content-type,x-access-token,x-anything")
			h := res.Header
			if res.StatusCode/100 != 2 || h.Get("Access-Control-Allow-Origin") != "*" ||
				!strings.Contains(h.Get("Access-Control-Allow-Methods"), method) ||
				h.Get("Access-Control-Max-Age") != "7200" || text != "" {
				t.Errorf("preflight of %s: %s %v", method, res.Status, h)
			}
			if allowed := h.Get("Access-Control-Allow-Headers"); allowed != "*" && !strings.Contains(allowed, "x-anything") {
				t.Errorf("allowed headers %q", allowed)
			}
		}
		res, _ := request(t, http1(), "GET", d.base+"/health", "", "Origin", "https://page.example")
		exposed := strings.ToLower(res.Header.Get("Access-Control-Expose-Headers"))
		for _, name := range []string{
			"grpc-status", "grpc-message", "grpc-status-details-bin", "location", "cache-control", "x-content-type-options",
		} {
			if !strings.Contains(exposed, name) {
				t.Errorf("%s is not exposed: %q", name, exposed)
			}
		}
		if res.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("headers %v", res.Header)
		}
	})
}
