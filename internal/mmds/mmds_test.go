package mmds

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

const answer = `{"instanceID":"i-1","envID":"t-1","address":"10.0.0.1:4318","accessTokenHash":"abc","more":{"x":[1]}}`

// serve runs a service that demands what version 2 demands, and answers body.
func serve(t *testing.T, body string) *Client {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-metadata-token-ttl-seconds") != "60" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte("dG9rZW4="))
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-metadata-token") != "dG9rZW4=" || r.Header.Get("Accept") != "application/json" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(body))
	})
	return serveWith(t, mux)
}

func serveWith(t *testing.T, h http.Handler) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return New(srv.Listener.Addr().String())
}

func TestFetch(t *testing.T) {
	leaktest.Check(t)
	c := serve(t, answer)
	for range 2 {
		m, err := c.Fetch(t.Context())
		if want := (Metadata{"i-1", "t-1", "10.0.0.1:4318", "abc"}); err != nil || m != want {
			t.Errorf("%+v, %v; want %+v", m, err, want)
		}
	}
	if m, err := serve(t, `{}`).Fetch(t.Context()); err != nil || m != (Metadata{}) {
		t.Errorf("of nothing yet: %+v, %v", m, err)
	}
}

// TestFetchNonsense checks that nothing strange gets past the client: values go
// into environments and files.
func TestFetchNonsense(t *testing.T) {
	leaktest.Check(t)
	for name, body := range map[string]string{
		"empty": "", "text": "hello", "list": "[]", "number": `{"instanceID":1}`, "cut off": answer[:20],
		"two lines": `{"instanceID":"a\nb"}`, "zero byte": `{"instanceID":"a","envID":"\u0000"}`,
		"not UTF-8 becomes the replacement rune, a value too long": `{"accessTokenHash":"` + strings.Repeat("f", maxValue+1) + `"}`,
		"endless": strings.Repeat(" ", maxBody+10) + answer,
	} {
		if m, err := serve(t, body).Fetch(t.Context()); !errors.Is(err, errNonsense) || m != (Metadata{}) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

func TestFetchRefused(t *testing.T) {
	leaktest.Check(t)
	for name, h := range map[string]http.HandlerFunc{
		"no such path":    http.NotFound,
		"server error":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"empty token":     func(http.ResponseWriter, *http.Request) {},
		"malformed token": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("a\r\nX: y")) },
		"no content":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"not HTTP": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = conn.Write([]byte("\x00\x01\x02\n\n"))
				_ = conn.Close()
			}
		},
		"endless token": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
	} {
		if m, err := serveWith(t, h).Fetch(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// TestFetchFollowsNothing checks that the service cannot send us elsewhere, and
// that no proxy of the environment comes in between.
func TestFetchFollowsNothing(t *testing.T) {
	leaktest.Check(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked elsewhere: %s %s", r.Method, r.URL)
	}))
	t.Cleanup(elsewhere.Close)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY"} {
		t.Setenv(name, elsewhere.URL)
	}
	t.Setenv("NO_PROXY", "")
	if _, err := serve(t, answer).Fetch(t.Context()); err != nil {
		t.Errorf("beside a proxy: %v", err)
	}
	c := serveWith(t, http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	if m, err := c.Fetch(t.Context()); err == nil {
		t.Errorf("redirected: %+v", m)
	}
}

// TestFetchNoAnswer checks services that are not there and that never answer.
func TestFetchNoAnswer(t *testing.T) {
	leaktest.Check(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // accepts, as the kernel does, and says nothing
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(l.Addr().String()).Fetch(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
	if _, err := New("127.0.0.1:1").Fetch(t.Context()); err == nil {
		t.Error("somebody answers on port 1")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{answer, "", "{}", `{"instanceID":null}`, `{"INSTANCEID":"x","envID":"\u2028"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := parse(body)
		if err != nil {
			if m != (Metadata{}) {
				t.Errorf("%q: %+v beside %v", body, m, err)
			}
			return
		}
		for _, v := range []string{m.InstanceID, m.EnvID, m.Address, m.AccessTokenHash} {
			if strings.ContainsAny(v, "\x00\r\n") || len(v) > maxValue {
				t.Errorf("%q: value %q", body, v)
			}
		}
	})
}
