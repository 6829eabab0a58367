// Package snapshot takes the built daemon through snapshots and restores, with
// clients that work on it, as a host does it. Who may call what, identity and
// the whole life of one guest are test/life's.
//
// TestMain builds the daemon, with the race detector. Each test starts one of
// its own, with a cgroup root of its own. A freeze of the machine is played by
// SIGSTOP; what it cannot play is time: the daemon's clock goes on. Peers that
// are gone after a restore are sockets that were closed without a word
// (TCP_REPAIR).
package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/client"
	"github.com/wrenn/envd/test/cgroups"
)

// limit bounds whatever a test waits for.
const limit = 30 * time.Second

// program is the built daemon.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "envd-snapshot-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "envd")
	cmd := exec.Command("go", "build", "-race", "-o", program, "./cmd/envd")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build daemon: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// guest is a running daemon.
type guest struct {
	t     *testing.T
	cmd   *exec.Cmd
	base  string // URL
	root  string // of its cgroups
	peers []*peer

	mu    sync.Mutex
	log   bytes.Buffer // guarded by mu
	ended chan struct{}
}

var addressInLog = regexp.MustCompile(`address=\S*:(\d+)`)

// boot starts a daemon that the test's end ends in order. The test runs beside
// others.
func boot(t *testing.T, flags ...string) *guest {
	t.Helper()
	t.Parallel()
	g := &guest{t: t, ended: make(chan struct{}), root: filepath.Join(cgroups.Mount(), fmt.Sprintf("envd-snapshot-%d-%s", os.Getpid(), t.Name()))}
	if err := os.Mkdir(g.root, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(g.root); err != nil {
			t.Errorf("groups are left behind: %v", err)
		}
	})
	g.cmd = exec.Command(program, append([]string{"--isnotfc", "--port", "0", "--cgroup-root", g.root}, flags...)...)
	// At its end the race detector sleeps for a second, for nothing here.
	g.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	r, err := g.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	port := make(chan string, 1)
	go func() {
		defer close(g.ended)
		for sc := bufio.NewScanner(r); sc.Scan(); {
			g.mu.Lock()
			g.log.WriteString(sc.Text() + "\n")
			g.mu.Unlock()
			if m := addressInLog.FindStringSubmatch(sc.Text()); m != nil && strings.Contains(sc.Text(), "ready") {
				port <- m[1]
			}
		}
	}()
	t.Cleanup(g.end)
	select {
	case p := <-port:
		g.base = "http://127.0.0.1:" + p
	case <-g.ended:
		t.Fatalf("daemon ended\n%s", g.text())
	case <-time.After(limit):
		t.Fatalf("daemon does not listen\n%s", g.text())
	}
	return g
}

func (g *guest) text() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.log.String()
}

// end stops the daemon, and fails the test when it does not end in order.
func (g *guest) end() {
	_ = g.cmd.Process.Signal(unix.SIGCONT)
	_ = g.cmd.Process.Signal(unix.SIGTERM)
	kill := time.AfterFunc(limit, func() { _ = g.cmd.Process.Kill() })
	defer kill.Stop()
	<-g.ended
	if err := g.cmd.Wait(); err != nil {
		g.t.Errorf("daemon did not end in order: %v", err)
	}
	for _, bad := range []string{"DATA RACE", "panicked", "panic:"} {
		if strings.Contains(g.text(), bad) {
			g.t.Errorf("the log says %q", bad)
		}
	}
	if g.t.Failed() {
		g.t.Logf("daemon's log:\n%s", g.text())
	}
}

// stop and cont are the freeze of the machine, as far as a test can play it.
func (g *guest) stop() {
	g.t.Helper()
	if err := g.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		g.t.Fatal(err)
	}
	g.await("the daemon to stop", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.cmd.Process.Pid))
		return err == nil && strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')')+1:]), " T")
	})
}

func (g *guest) cont() { _ = g.cmd.Process.Signal(unix.SIGCONT) }

// await polls until ok.
func (g *guest) await(what string, ok func() bool) {
	g.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// sockets counts the connections that the daemon holds.
func (g *guest) sockets() int {
	g.t.Helper()
	_, port, _ := strings.Cut(strings.TrimPrefix(g.base, "http://"), ":")
	n, _ := strconv.Atoi(port)
	established := 0
	for _, file := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile("/proc/net/" + file)
		if err != nil {
			g.t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			// proc_net_tcp(5): local address, remote address, state, …, inode
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) && f[3] == "01" && f[9] != "0" {
				established++
			}
		}
	}
	return established
}

// peer is a client of the guest whose connections the test holds.
type peer struct {
	*client.Client
	http *http.Client

	mu    sync.Mutex
	conns []*net.TCPConn // guarded by mu
}

// peer makes a client over h2c or HTTP/1.1.
func (g *guest) peer(h2 bool) *peer {
	p := &peer{}
	g.peers = append(g.peers, p)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	most := 0 // connections: any number
	if h2 {
		// Package http has the first one answer before others find it: who comes
		// between would dial another, in vain.
		most = 1
	}
	p.http = &http.Client{Transport: &http.Transport{
		Protocols: protocols, MaxIdleConnsPerHost: 100, MaxConnsPerHost: most,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				p.mu.Lock()
				p.conns = append(p.conns, conn.(*net.TCPConn))
				p.mu.Unlock()
			}
			return conn, err
		},
	}}
	p.Client = client.New(g.base, client.Options{HTTP: p.http})
	g.t.Cleanup(p.http.CloseIdleConnections)
	return p
}

// vanish closes all of the client's connections without a word to the daemon.
func (p *peer) vanish(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) { // closed by now: nothing to hide
			if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
				t.Fatalf("close a connection without a word: %v", err)
			}
		})
		_ = c.Close()
	}
	p.conns = nil
}

// call makes a plain HTTP request and fails the test unless the status is that.
func (g *guest) call(p *peer, method, path, body string, status int) string {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.base+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	res, err := p.http.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(res.Body); err != nil {
		g.t.Fatal(err)
	}
	if res.StatusCode != status {
		g.t.Fatalf("%s %s: %s\n%s", method, path, res.Status, &text)
	}
	return text.String()
}

// descriptors counts what the daemon has open.
func (g *guest) descriptors() int {
	g.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.cmd.Process.Pid))
	if err != nil {
		g.t.Fatal(err)
	}
	return len(entries)
}
