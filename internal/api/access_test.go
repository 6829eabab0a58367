package api

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/gen/process/processconnect"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
)

const testToken = "the-token"

// accessConfig serves with token set, "" for none, and the one user root.
func accessConfig(t *testing.T, token string) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{
		Version:  "0.9.0",
		Settings: guest.NewStore(guest.Settings{User: "root", Token: guest.NewToken(token)}),
		Accounts: guest.NewAccounts(filepath.Join(dir, "passwd"), filepath.Join(dir, "group")),
		Log:      slog.New(slog.DiscardHandler),
	}
	cfg.Machine = guest.NewMachine(guest.MachineConfig{Settings: cfg.Settings, Clock: &heldClock{}, Log: cfg.Log, Root: dir})
	return cfg
}

func TestTokenOnly(t *testing.T) {
	reached := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	exempt := map[string]bool{
		"GET /health": true, "POST /init": true,
		"GET /files": true, "HEAD /files": true, "POST /files": true, "PATCH /files": true,
	}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "get", "X"} {
		for _, path := range []string{
			"/", "/health", "/health/", "/init", "/init/", "/files", "/files/", "/files/compose", "//files", "/metrics", "/envs",
			"/snapshot/prepare", "/process.Process/List", "/health.Health/files", "/%66iles",
		} {
			for _, row := range []struct {
				name, set string
				headers   []string
				want      int
			}{
				{"no token set", "", nil, http.StatusTeapot},
				{"no token set, one sent", "", []string{"x"}, http.StatusTeapot},
				{"right", testToken, []string{testToken}, http.StatusTeapot},
				{"missing", testToken, nil, http.StatusUnauthorized},
				{"empty", testToken, []string{""}, http.StatusUnauthorized},
				{"wrong", testToken, []string{testToken + "x"}, http.StatusUnauthorized},
				{"wrong, then right", testToken, []string{"x", testToken}, http.StatusUnauthorized},
			} {
				r := httptest.NewRequest("POST", path, nil)
				r.Method = method
				r.Header[tokenHeader] = row.headers
				w := httptest.NewRecorder()
				tokenOnly(accessConfig(t, row.set).Settings, reached).ServeHTTP(w, r)
				want := row.want
				if exempt[method+" "+r.URL.Path] {
					want = http.StatusTeapot
				}
				if w.Code != want {
					t.Errorf("%s %s, %s: status %d, want %d", method, path, row.name, w.Code, want)
				}
				if w.Code == http.StatusUnauthorized {
					checkError(t, w, http.StatusUnauthorized, textUnauthorized)
				}
			}
		}
	}
}

// checkError checks the JSON body of every HTTP error.
func checkError(t *testing.T, w *httptest.ResponseRecorder, code int, message string) {
	t.Helper()
	var body struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Code != code || body.Message != message {
		t.Errorf("body %q, %v", w.Body, err)
	}
}

// TestTokenOfRPCs checks that clients of every protocol get a code that they
// can read, from unary calls and streams.
func TestTokenOfRPCs(t *testing.T) {
	leaktest.Check(t)
	srv := httptest.NewUnstartedServer(New(accessConfig(t, testToken)))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	for _, h2 := range []bool{false, true} {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(!h2)
		protocols.SetUnencryptedHTTP2(h2)
		transport := &http.Transport{Protocols: protocols}
		t.Cleanup(transport.CloseIdleConnections)
		for name, opts := range map[string][]connect.ClientOption{
			"Connect": nil, "Connect JSON": {connect.WithProtoJSON()}, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()},
		} {
			if name == "gRPC" && !h2 {
				continue // needs trailers
			}
			c := processconnect.NewProcessClient(&http.Client{Transport: transport}, srv.URL, opts...)
			for _, sent := range []string{"", "wrong"} {
				list := connect.NewRequest(&pb.ListRequest{})
				list.Header().Set(tokenHeader, sent)
				_, unary := c.List(t.Context(), list)
				start := connect.NewRequest(&pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "true"}})
				start.Header().Set(tokenHeader, sent)
				stream, err := c.Start(t.Context(), start)
				if err == nil {
					stream.Receive()
					err = stream.Err()
					stream.Close()
				}
				for what, err := range map[string]error{"unary": unary, "stream": err} {
					coded := (*connect.Error)(nil)
					if !errors.As(err, &coded) || coded.Code() != connect.CodeUnauthenticated || coded.Message() != textUnauthorized {
						t.Errorf("HTTP/2 %v, %s, token %q, %s: %v", h2, name, sent, what, err)
					}
				}
			}
		}
	}
}

// signature is written out as the contract has it.
func signature(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
}

func TestAuthorizeFiles(t *testing.T) {
	soon := fmt.Sprint(time.Now().Add(time.Minute).Unix())
	past := fmt.Sprint(time.Now().Add(-2 * time.Second).Unix())
	sign := func(path, op, user, token, expiration string) url.Values {
		v := url.Values{"path": {path}}
		text := path + ":" + op + ":" + user + ":" + token
		if expiration != "" {
			text += ":" + expiration
			v.Set("signature_expiration", expiration)
		}
		if user != "" {
			v.Set("username", user)
		}
		v.Set("signature", signature(text))
		return v
	}
	but := func(v url.Values, key, value string) url.Values {
		v.Set(key, value)
		return v
	}
	for _, row := range []struct {
		name  string
		set   string // token
		sent  string
		query url.Values
		want  error
	}{
		{"no token set", "", "", nil, nil},
		{"no token set, one sent", "", "x", nil, nil},
		{"no token set, unknown user", "", "", url.Values{"username": {"nosuch"}}, guest.ErrUnknownUser},
		{"right token", testToken, testToken, nil, nil},
		{"right token, wrong signature", testToken, testToken, url.Values{"signature": {"v1_x"}}, nil},
		{"right token, unknown user", testToken, testToken, url.Values{"username": {"nosuch"}}, guest.ErrUnknownUser},
		{"wrong token, right signature", testToken, "x", sign("/a", "read", "root", testToken, ""), errUnauthorized},
		{"neither", testToken, "", url.Values{"path": {"/a"}}, errUnauthorized},
		{"signed", testToken, "", sign("/a b+c/ö", "read", "root", testToken, ""), nil},
		{"signed until soon", testToken, "", sign("/a", "read", "root", testToken, soon), nil},
		{"signed without user", testToken, "", sign("/a", "read", "", testToken, soon), nil},
		{"signed without anything", testToken, "", sign("", "read", "", testToken, ""), nil},
		{"signed for the default user, unnamed", testToken, "", but(sign("/a", "read", "root", testToken, ""), "username", ""), nil},
		{"signed for no user, named", testToken, "", but(sign("/a", "read", "", testToken, ""), "username", "root"), errUnauthorized},
		{"signed for another user", testToken, "", but(sign("/a", "read", "other", testToken, ""), "username", "root"), errUnauthorized},
		{"signed, unknown user", testToken, "", sign("/a", "read", "nosuch", testToken, ""), guest.ErrUnknownUser},
		{"signed for another path", testToken, "", but(sign("/a", "read", "root", testToken, ""), "path", "/b"), errUnauthorized},
		{"signed for another operation", testToken, "", sign("/a", "write", "root", testToken, ""), errUnauthorized},
		{"signed with another token", testToken, "", sign("/a", "read", "root", "other", ""), errUnauthorized},
		{"signed with no token", testToken, "", sign("/a", "read", "root", "", ""), errUnauthorized},
		{"expired", testToken, "", sign("/a", "read", "root", testToken, past), errUnauthorized},
		{"expiration changed", testToken, "", but(sign("/a", "read", "root", testToken, past), "signature_expiration", soon), errUnauthorized},
		{"expiration removed", testToken, "", but(sign("/a", "read", "root", testToken, past), "signature_expiration", ""), errUnauthorized},
		{"expiration added", testToken, "", but(sign("/a", "read", "root", testToken, ""), "signature_expiration", soon), errUnauthorized},
		{"expiration malformed", testToken, "", sign("/a", "read", "root", testToken, "never"), errUnauthorized},
		{"expiration too large", testToken, "", sign("/a", "read", "root", testToken, strings.Repeat("9", 30)), errUnauthorized},
		{"padded", testToken, "", but(sign("/a", "read", "root", testToken, ""), "signature", signature("/a:read:root:"+testToken)+"="), errUnauthorized},
		{"no version", testToken, "", but(sign("/a", "read", "root", testToken, ""), "signature", signature("/a:read:root:" + testToken)[3:]), errUnauthorized},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/files?"+row.query.Encode(), nil)
			if row.sent != "" {
				r.Header.Set(tokenHeader, row.sent)
			}
			acct, err := accessConfig(t, row.set).authorizeFiles(r, opRead)
			if !errors.Is(err, row.want) || err == nil && acct.Name != "root" {
				t.Errorf("account %+v, %v; want %v", acct, err, row.want)
			}
			// No signature is for both.
			if row.query.Has("signature") && row.sent == "" && err == nil {
				if _, err := accessConfig(t, row.set).authorizeFiles(r, opWrite); !errors.Is(err, errUnauthorized) {
					t.Errorf("to write: %v", err)
				}
			}
		})
	}
}

func TestHostOnly(t *testing.T) {
	reached := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for want, fromGuest := range map[int]func(context.Context) bool{
		http.StatusForbidden: func(context.Context) bool { return true },
		http.StatusTeapot:    func(context.Context) bool { return false },
	} {
		cfg := accessConfig(t, "")
		for _, judge := range []func(context.Context) bool{fromGuest, nil} {
			if cfg.FromGuest = judge; judge == nil {
				want = http.StatusTeapot
			}
			w := httptest.NewRecorder()
			cfg.hostOnly(reached).ServeHTTP(w, httptest.NewRequest("POST", "/init", nil))
			if w.Code != want {
				t.Errorf("status %d, want %d", w.Code, want)
			}
		}
	}
}
