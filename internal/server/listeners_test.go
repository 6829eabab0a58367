package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

// vsockOver makes a vsock listener of a unix one, since few machines have vsock
// between two programs: all but addresses is alike. The real one is in test/vm.
func vsockOver(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File() // non-blocking, as its original
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return &vsockListener{f, vsockAddr{3, 1024}}
}

// dialUnix is a client of one version of HTTP on a unix socket.
func dialUnix(t *testing.T, path string, h2 bool) *http.Client {
	t.Helper()
	hc := client(t, h2)
	hc.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return hc
}

// TestListeners serves on everything at once: requests with bodies, responses
// copied from a file, many on one connection, in both versions of HTTP.
func TestListeners(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	text := strings.Repeat("all of it ", 100_000)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	unixPath, vsockPath := filepath.Join(dir, "unix"), filepath.Join(dir, "vsock")
	unixListener, err := ListenUnix(unixPath)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || !FromGuest(r.Context()) {
			t.Errorf("body %v; not the guest's", err)
		}
		w.Header().Set("X-Length", r.Host)
		if len(body) == len(text) {
			http.ServeFile(w, r, file)
		}
	}), quiet(), unixListener, vsockOver(t, vsockPath))
	run(t, s)
	for _, tc := range []struct {
		name string
		hc   *http.Client
		host string
	}{
		{"tcp", client(t, false), s.Addr().String()},
		{"unix", dialUnix(t, unixPath, false), "unix"},
		{"unix, HTTP/2", dialUnix(t, unixPath, true), "unix"},
		{"vsock", dialUnix(t, vsockPath, false), "vsock"},
		{"vsock, HTTP/2", dialUnix(t, vsockPath, true), "vsock"},
	} {
		for range 3 {
			res, err := tc.hc.Post("http://"+tc.host, "text/plain", strings.NewReader(text))
			if err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			b, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || string(b) != text {
				t.Errorf("%s: %d bytes, %v", tc.name, len(b), err)
			}
		}
	}
}

// TestVsockErrors checks that errors are what net/http makes its decisions by.
func TestVsockErrors(t *testing.T) {
	leaktest.Check(t)
	path := filepath.Join(t.TempDir(), "socket")
	l := vsockOver(t, path)
	peer, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	var netErr net.Error
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Errorf("read past the deadline: %v", err)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.(socket).CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // as it is
		t.Errorf("the peer of a half-closed connection reads: %v", err)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Errorf("the other half is closed, too: %v", err)
	}
	if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	_ = peer.Close()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // as it is
		t.Errorf("read after the peer's end: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to a closed connection: %v", err)
	}

	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-accepted:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept from a closed listener: %v", err)
		}
	case <-time.After(limit):
		t.Error("accept outlives its listener")
	}
}

// TestListenUnix checks whose the socket is, and what may be in its way.
func TestListenUnix(t *testing.T) {
	leaktest.Check(t)
	path := filepath.Join(t.TempDir(), "socket")
	first, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if l, err := ListenUnix(path); err == nil {
		t.Errorf("a second listener: %v", l.Addr())
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as one that was killed
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	again, err := ListenUnix(path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket outlives its listener")
	}
	if err := os.WriteFile(path, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := ListenUnix(path); err == nil {
		t.Errorf("in place of a file: %v", l.Addr())
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "somebody's" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}
