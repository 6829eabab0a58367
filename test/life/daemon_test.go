package life

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const port = "49983"

// build builds the daemon once, with the race detector: on a filesystem that goes
// with the guest.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("/run", "envd-life-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "envd")
	cmd := exec.Command("go", "build", "-race", "-o", out, "./cmd/envd")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build daemon: %w\n%s", err, text)
	}
	return out, nil
})

// served is a running daemon in Firecracker mode.
type served struct {
	cmd *exec.Cmd

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

func (d *served) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// startDaemon runs the built daemon in the guest until the test ends. It cannot
// set the clock.
func startDaemon(t *testing.T) *served {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	d := &served{cmd: exec.Command(program, "--port", port, "--cgroup-root", "/nonexistent", "--log-level", "DEBUG")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stderr = w
	if err := startWithout(unix.CAP_SYS_TIME, d.cmd); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		for sc := bufio.NewScanner(r); sc.Scan(); {
			d.mu.Lock()
			d.log.WriteString(sc.Text() + "\n")
			d.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(limit, func() { _ = d.cmd.Process.Kill() })
		err := d.cmd.Wait()
		kill.Stop()
		<-read
		text := d.text()
		if err != nil || strings.Contains(text, "DATA RACE") || strings.Contains(text, "panic") {
			t.Errorf("daemon: %v", err)
		}
		if t.Failed() {
			t.Logf("the daemon's log ends:\n%s", text[max(0, len(text)-8<<10):])
		}
	})
	await(t, "the daemon to listen", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return d
}

// startWithout starts cmd without a capability.
func startWithout(capability uintptr, cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			done <- err
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

// await polls until something is so.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// caller sends requests from one place to one address of the guest.
type caller struct {
	name     string
	fromHost bool
	base     string
	http     *http.Client
}

func newCaller(t *testing.T, name string, from *place, fromHost bool, addr string) *caller {
	t.Helper()
	transport := &http.Transport{
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) { return from.dial(network, addr) },
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &caller{name, fromHost, "http://" + net.JoinHostPort(addr, port), &http.Client{Transport: transport}}
}

// send sends a request and answers its status, and what the body begins with.
func (c *caller) send(ctx context.Context, method, path string, header http.Header, body string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header = header.Clone()
	res, err := c.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	buf := make([]byte, 64<<10)
	n, err := io.ReadAtLeast(res.Body, buf, len(buf))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return res.StatusCode, string(buf[:n]), err
}

// must is send for what has to have that status.
func (c *caller) must(t *testing.T, want int, method, path, token, body string) string {
	t.Helper()
	header := http.Header{}
	if token != "" {
		header.Set("X-Access-Token", token)
	}
	code, text, err := c.send(t.Context(), method, path, header, body)
	if err != nil || code != want {
		t.Fatalf("%s: %s %s: status %d %s, %v; want %d", c.name, method, path, code, text, err, want)
	}
	return text
}
