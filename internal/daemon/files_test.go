package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/api"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/server"
)

// serveFiles runs the server and the handlers as the daemon does, and answers
// their address.
func serveFiles(t *testing.T, userAccess bool) string {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	listener, err := server.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := server.New(api.New(api.Config{
		Settings: guest.NewStore(guest.Settings{User: "root"}),
		Accounts: guest.NewAccounts("/etc/passwd", "/etc/group"),
		Log:      log, Cork: server.Cork, UserAccess: userAccess,
	}), log, listener)
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(srv.Close(ctx, errors.New("the test is over")), <-ended); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// TestDownloadIsCopiedByTheKernel checks that nothing on the way from the
// handler to the connection hides sendfile(2). What it sends are the pages of
// the file itself: a change of the file after it was sent, and before it was
// received, is seen. A copy through memory would not show it.
func TestDownloadIsCopiedByTheKernel(t *testing.T) {
	leaktest.Check(t)
	addr := serveFiles(t, false)
	const size = 100_000 // more than the handler sends in one write, less than a connection holds
	path := filepath.Join(t.TempDir(), "f")
	for name, header := range map[string]string{"whole": "", "range": "Range: bytes=0-99999\r\n"} {
		if err := os.WriteFile(path, bytes.Repeat([]byte("a"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		conn, err := roomy(2*size).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "GET /files?path=%s HTTP/1.1\r\nHost: x\r\n%s\r\n", url.QueryEscape(path), header); err != nil {
			t.Fatal(err)
		}
		awaitBytes(t, conn.(*net.TCPConn), size)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(bytes.Repeat([]byte("b"), size)); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		got := make([]byte, size)
		if _, err := io.ReadFull(conn, got); err != nil {
			t.Fatal(err)
		}
		// The first bytes are copied, with the headers.
		if n := bytes.Count(got, []byte("b")); n < size/2 {
			t.Errorf("%s: %d bytes of %d came from the file's own pages", name, n, size)
		}
		_ = conn.Close()
	}
}

// roomy dials connections that take that many bytes before any is read. Of a
// buffer as it is by default Linux 6.1 offers 64 KiB.
func roomy(n int) *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n) })
		return errors.Join(err, set)
	}}
}

// awaitBytes waits until a connection has that many bytes to read.
func awaitBytes(t *testing.T, conn *net.TCPConn, n int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		waiting := 0
		_ = raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		if err != nil {
			t.Fatal(err)
		}
		if waiting >= n {
			return
		}
	}
	t.Fatalf("there are no %d bytes", n)
}

// TestFilesOverHTTP2 sends files both ways over one h2c connection, where each
// body is cut into frames and nothing is copied by the kernel.
func TestFilesOverHTTP2(t *testing.T) {
	for _, userAccess := range []bool{false, true} {
		leaktest.Check(t)
		base := "http://" + serveFiles(t, userAccess)
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		hc := &http.Client{Transport: &http.Transport{Protocols: protocols, DisableCompression: true}}
		dir := t.TempDir()
		contents := make([]byte, 3<<20)
		rand.Read(contents)
		target := base + "/files?path=" + url.QueryEscape(filepath.Join(dir, "f"))
		res, err := hc.Post(target, "application/octet-stream", bytes.NewReader(contents))
		if err != nil || res.StatusCode != http.StatusOK || res.ProtoMajor != 2 {
			t.Fatalf("%v, %v", res, err)
		}
		_ = res.Body.Close()
		for header, want := range map[string][]byte{"": contents, "bytes=1000000-1999999": contents[1_000_000:2_000_000]} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
			if err != nil {
				t.Fatal(err)
			}
			if header != "" {
				req.Header.Set("Range", header)
			}
			res, err := hc.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("range %q: %d bytes, want %d: %v", header, len(got), len(want), err)
			}
		}
		// A file that gets shorter is an error here, too.
		if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 32<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if res, err = hc.Get(target); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, "f"), 10); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); err == nil {
			t.Errorf("%d bytes look whole", n)
		}
		_ = res.Body.Close()
		hc.CloseIdleConnections()
	}
}
