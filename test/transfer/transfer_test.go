// Package transfer runs the Go client's uploads and downloads against the
// handlers on a real server, over connections that break in the middle.
package transfer

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
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn/envd/client"
	"github.com/wrenn/envd/internal/api"
	"github.com/wrenn/envd/internal/guest"
	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/server"
)

// serve answers the address of a daemon's server.
func serve(t *testing.T) string {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	listener, err := server.Listen("127.0.0.1:0")
	must(t, err)
	srv := server.New(api.New(api.Config{
		Settings: guest.NewStore(guest.Settings{User: "root"}),
		Accounts: guest.NewAccounts("/etc/passwd", "/etc/group"),
		Log:      log,
	}), log, listener)
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		must(t, errors.Join(srv.Close(ctx, errors.New("the test is over")), <-ended))
	})
	return listener.Addr().String()
}

// breaker is a proxy that resets each connection after so many bytes in either
// direction.
type breaker struct {
	addr  string
	after atomic.Int64 // bytes; 0 for no limit
	cuts  atomic.Int64 // connections cut so far
}

func cutting(t *testing.T, target string) *breaker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	b := &breaker{addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { b.forward(c.(*net.TCPConn), target) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	return b
}

func (b *breaker) forward(in *net.TCPConn, target string) {
	defer in.Close()
	c, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	out := c.(*net.TCPConn)
	defer out.Close()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{in, out}, {out, in}} {
		both.Go(func() {
			if b.copy(way[1], way[0]) {
				b.cuts.Add(1)
				_ = in.SetLinger(0)
				_ = out.SetLinger(0)
			}
			_ = in.Close()
			_ = out.Close()
		})
	}
	both.Wait()
}

// copy copies until one end fails, or tells that it has been enough.
func (b *breaker) copy(dst, src *net.TCPConn) (enough bool) {
	buf := make([]byte, 16<<10)
	for total := int64(0); ; {
		n, err := src.Read(buf)
		if err != nil {
			return false
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return false
		}
		if after := b.after.Load(); after > 0 {
			if total += int64(n); total >= after {
				return true
			}
		}
	}
}

// clients runs f with a client of each protocol, behind a breaker.
func clients(t *testing.T, f func(t *testing.T, c *client.Client, b *breaker)) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(protocol, func(t *testing.T) {
			leaktest.Check(t)
			b := cutting(t, serve(t))
			protocols := new(http.Protocols)
			protocols.SetHTTP1(protocol == "HTTP/1.1")
			protocols.SetUnencryptedHTTP2(protocol == "HTTP/2")
			hc := &http.Client{Transport: &http.Transport{Protocols: protocols}}
			t.Cleanup(hc.CloseIdleConnections)
			f(t, client.New("http://"+b.addr, client.Options{HTTP: hc}), b)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func wantContents(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes, and not the %d that were sent", path, len(got), len(want))
	}
}

const partSize = 128 << 10

func TestUpload(t *testing.T) {
	clients(t, func(t *testing.T, c *client.Client, _ *breaker) {
		path := filepath.Join(t.TempDir(), "d/f")
		for _, size := range []int{0, 1, 70_000, 300_000} { // the last takes three parts
			for _, atomic := range []bool{false, true} {
				contents := noise(size)
				opts := client.UploadOptions{Atomic: atomic, PartSize: partSize, Metadata: map[string]string{"k": "v"}}
				must(t, c.Upload(t.Context(), path, bytes.NewReader(contents), opts))
				wantContents(t, path, contents)
				var got bytes.Buffer
				n, err := c.Download(t.Context(), path, &got)
				must(t, err)
				if n != int64(size) || !bytes.Equal(got.Bytes(), contents) {
					t.Errorf("downloaded %d bytes of %d", n, size)
				}
			}
		}
		// From where the source is; and from one that cannot seek.
		src := strings.NewReader("skipped, sent")
		_, err := src.Seek(int64(len("skipped, ")), io.SeekStart)
		must(t, err)
		must(t, c.Upload(t.Context(), path, src, client.UploadOptions{}))
		wantContents(t, path, []byte("sent"))
		must(t, c.Upload(t.Context(), path, io.MultiReader(strings.NewReader("once")), client.UploadOptions{}))
		wantContents(t, path, []byte("once"))
	})
}

// TestBrokenUpload: the connection breaks in the first part and in the second.
func TestBrokenUpload(t *testing.T) {
	clients(t, func(t *testing.T, c *client.Client, b *breaker) {
		path := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(path, noise(1<<20), 0o600)) // longer than what comes
		contents := noise(500_000)
		for _, atomic := range []bool{false, true} {
			b.cuts.Store(0)
			b.after.Store(200_000)
			src := &mending{ReadSeeker: bytes.NewReader(contents), mend: func() {
				if b.cuts.Load() >= 2 {
					b.after.Store(0)
				}
			}}
			must(t, c.Upload(t.Context(), path, src, client.UploadOptions{Atomic: atomic, PartSize: partSize}))
			wantContents(t, path, contents)
			if b.cuts.Load() < 2 {
				t.Errorf("%d connections were cut", b.cuts.Load())
			}
		}
	})
}

// mending is a source that calls mend now and then.
type mending struct {
	io.ReadSeeker
	mend func()
}

func (m *mending) Seek(offset int64, whence int) (int64, error) {
	m.mend()
	return m.ReadSeeker.Seek(offset, whence)
}

// TestBrokenDownload continues a file over connections that each carry a part.
func TestBrokenDownload(t *testing.T) {
	clients(t, func(t *testing.T, c *client.Client, b *breaker) {
		path := filepath.Join(t.TempDir(), "f")
		contents := noise(4 << 20)
		must(t, os.WriteFile(path, contents, 0o600))
		b.after.Store(1 << 20)
		var got bytes.Buffer
		n, err := c.Download(t.Context(), path, &got)
		must(t, err)
		if n != int64(len(contents)) || !bytes.Equal(got.Bytes(), contents) {
			t.Errorf("got %d bytes of %d", n, len(contents))
		}
		if b.cuts.Load() < 3 {
			t.Errorf("%d connections were cut", b.cuts.Load())
		}
		// Another file under the name is not continued with.
		change := &changing{change: func() { must(t, os.WriteFile(path, contents[1:], 0o600)) }}
		if _, err := c.Download(t.Context(), path, change); !errors.Is(err, client.ErrChanged) {
			t.Errorf("error %v", err)
		}
		// An error of the destination is no reason to try again.
		full := errors.New("no room")
		if _, err := c.Download(t.Context(), path, &changing{err: full}); !errors.Is(err, full) {
			t.Errorf("error %v", err)
		}
	})
}

// changing calls change at the first write, or fails.
type changing struct {
	change func()
	err    error
	once   sync.Once
}

func (c *changing) Write(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	c.once.Do(c.change)
	return len(p), nil
}

func TestRefused(t *testing.T) {
	clients(t, func(t *testing.T, c *client.Client, _ *breaker) {
		dir := t.TempDir()
		_, missing := c.Download(t.Context(), filepath.Join(dir, "missing"), io.Discard)
		for status, err := range map[int]error{
			404: missing,
			400: c.Upload(t.Context(), dir, strings.NewReader("x"), client.UploadOptions{}),
		} {
			refused := (*client.StatusError)(nil)
			if !errors.As(err, &refused) || refused.Status != status || refused.Message == "" {
				t.Errorf("want %d, got %v", status, err)
			}
		}
		if err := c.Pack(t.Context(), filepath.Join(dir, "missing"), client.Tar, io.Discard); err == nil {
			t.Error("packed what is not there")
		}
		must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
		if err := c.Pack(t.Context(), filepath.Join(dir, "f"), client.Tar, io.Discard); err == nil {
			t.Error("packed a file")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Upload(ctx, filepath.Join(dir, "f"), strings.NewReader("x"), client.UploadOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestTrees(t *testing.T) {
	clients(t, func(t *testing.T, c *client.Client, _ *breaker) {
		dir := t.TempDir()
		want := noise(100_000)
		must(t, os.MkdirAll(filepath.Join(dir, "tree/sub"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "tree/sub/f"), want, 0o640))
		for i, kind := range []client.ArchiveType{client.Tar, client.TarGzip, client.TarZstd} {
			var archive bytes.Buffer
			must(t, c.Pack(t.Context(), filepath.Join(dir, "tree"), kind, &archive))
			into := filepath.Join(dir, fmt.Sprint("copy", i))
			must(t, c.Unpack(t.Context(), into, kind, &archive))
			wantContents(t, filepath.Join(into, "sub/f"), want)
		}
	})
}
