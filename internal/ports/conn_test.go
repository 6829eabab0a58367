package ports

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// pair is a forwarded connection: both its ends.
func pair(t *testing.T) (f *Forwarder, client, server *net.TCPConn) {
	t.Helper()
	f = startForwarder(t)
	l, port := listen(t, "127.0.0.1:0")
	client, server = connect(t, l, port)
	return f, client, server
}

// connect makes one more connection to l, on port.
func connect(t *testing.T, l net.Listener, port uint16) (client, server *net.TCPConn) {
	t.Helper()
	client = dialForward(t, port)
	c, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return client, c.(*net.TCPConn)
}

func TestConnBothWays(t *testing.T) { bothWays(t, testConnBothWays) }

func testConnBothWays(t *testing.T) {
	f, client, server := pair(t)
	const size = 8 << 20
	up, down := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	var wg sync.WaitGroup
	send := func(c *net.TCPConn, b []byte) {
		if _, err := c.Write(b); err != nil {
			t.Error(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
	}
	receive := func(c *net.TCPConn, want []byte) {
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	wg.Go(func() { send(client, up) })
	wg.Go(func() { send(server, down) })
	wg.Go(func() { receive(server, up) })
	wg.Go(func() { receive(client, down) })
	wg.Wait()
	eventually(t, "the connection is gone", func() bool { return f.Stats().Connections == 0 })
	if s := f.Stats(); s.In != size || s.Out != size || s.Accepted != 1 || s.Failed != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestConnHalfClose ends one direction, in both roles, and uses the other.
func TestConnHalfClose(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			_, a, b := pair(t)
			if first == "server" {
				a, b = b, a
			}
			must(t, a.CloseWrite())
			if got, err := io.ReadAll(b); err != nil || len(got) > 0 {
				t.Fatalf("got %q, %v", got, err)
			}
			for range 10 {
				_, err := b.Write([]byte("more"))
				must(t, err)
				buf := make([]byte, 4)
				if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "more" {
					t.Fatalf("got %q, %v", buf, err)
				}
			}
			must(t, b.Close())
			wantWord(t, a, "")
		})
	}
}

// TestConnReset passes a reset on, in both directions.
func TestConnReset(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			f, a, b := pair(t)
			if first == "server" {
				a, b = b, a
			}
			must(t, a.SetLinger(0))
			must(t, a.Close())
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want a reset", err)
			}
			eventually(t, "the connection is gone", func() bool { return f.Stats().Connections == 0 })
		})
	}
}

// TestConnResetAfterData delivers what a server wrote before its end, although
// the client still sends.
func TestConnResetAfterData(t *testing.T) {
	_, client, server := pair(t)
	_, err := client.Write([]byte("a request that nobody reads"))
	must(t, err)
	eventually(t, "the request arrives", func() bool {
		n := 0
		raw, err := server.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }))
		return err == nil && n > 0
	})
	_, err = server.Write([]byte("too large"))
	must(t, err)
	buf := make([]byte, 9)
	if _, err := io.ReadFull(client, buf); err != nil || string(buf) != "too large" {
		t.Fatalf("got %q, %v", buf, err)
	}
	must(t, server.Close()) // with unread data: a reset
	if _, err := client.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// TestConnResetBehindData: of what arrived before a reset, a slow reader gets
// all, and then the reset.
func TestConnResetBehindData(t *testing.T) {
	_, client, server := pair(t)
	must(t, client.SetReadBuffer(4<<10))
	_, err := client.Write([]byte("a request that nobody reads"))
	must(t, err)
	answer := make([]byte, 256<<10)
	_, err = server.Write(answer)
	must(t, err)
	raw, err := server.SyscallConn()
	must(t, err)
	eventually(t, "all is taken over", func() bool {
		unsent := 1
		must(t, raw.Control(func(fd uintptr) { unsent, err = linux.Unsent(fd) }))
		return err == nil && unsent == 0
	})
	must(t, server.Close()) // with unread data: a reset
	time.Sleep(50 * time.Millisecond)
	got, err := io.ReadAll(client)
	if len(got) != len(answer) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %d of %d bytes, %v; want a reset", len(got), len(answer), err)
	}
}

// TestConnResetWhileBlocked passes a reset on that meets both directions: one
// waits to send more, the other for what comes.
func TestConnResetWhileBlocked(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			startForwarder(t)
			l, port := listen(t, "127.0.0.1:0")
			for i := range 20 {
				a, b := connect(t, l, port)
				if first == "server" {
					a, b = b, a
				}
				must(t, b.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
				if _, err := io.Copy(b, neverEnding{}); err == nil {
					t.Fatal("everything was taken")
				}
				_, err := a.Write([]byte("part"))
				must(t, err)
				buf := make([]byte, 5)
				_, err = io.ReadFull(b, buf[:4])
				must(t, err)
				must(t, a.SetLinger(0))
				must(t, a.Close())
				if _, err := b.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
					t.Fatalf("round %d: got %v, want a reset", i, err)
				}
			}
		})
	}
}

// TestConnDialFails resets connections that nobody behind the forward takes.
func TestConnDialFails(t *testing.T) { bothWays(t, testConnDialFails) }

func testConnDialFails(t *testing.T) {
	f := startForwarder(t, func(c *Config) { c.Active = func() bool { return false } })
	l, port := listen(t, "127.0.0.1:0")
	looked(t, f)
	f.mu.Lock()
	// The listener goes, and nobody has noticed yet.
	must(t, l.Close())
	c, err := net.Dial("tcp", at(port))
	must(t, err)
	defer c.Close()
	id := doorID
	if f.door == nil {
		id = f.forwards[port].id
	}
	f.acceptLocked(id)
	f.mu.Unlock()
	must(t, c.SetDeadline(time.Now().Add(patience)))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	eventually(t, "it is counted", func() bool { return f.Stats().Failed == 1 })
}

// TestConnBackpressure: who does not read stops who writes.
func TestConnBackpressure(t *testing.T) {
	f, client, server := pair(t)
	must(t, client.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	sent, err := io.Copy(client, neverEnding{})
	if err == nil {
		t.Fatal("everything was taken")
	}
	if sent > 64<<20 {
		t.Errorf("%d bytes under way", sent)
	}
	must(t, client.CloseWrite())
	got, err := io.Copy(io.Discard, server)
	if err != nil || got != sent {
		t.Errorf("%d bytes of %d arrived: %v", got, sent, err)
	}
	must(t, server.Close())
	eventually(t, "the connection is gone", func() bool { return f.Stats().Connections == 0 })
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

// TestConnNoDelay: small writes are not held back on either leg.
func TestConnNoDelay(t *testing.T) {
	f, _, _ := pair(t)
	sides := map[string]side{}
	eventually(t, "the connection is forwarded", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for c := range f.open {
			c.mu.Lock()
			if c.server != nil {
				sides["client"], sides["server"] = c.client, c.server
			}
			c.mu.Unlock()
		}
		return len(sides) == 2
	})
	for name, s := range sides {
		control(s, func(fd uintptr) {
			for opt, want := range map[int]int{unix.TCP_NODELAY: 1, unix.TCP_KEEPIDLE: 30} {
				v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, opt)
				if err != nil || v != want {
					t.Errorf("%s: TCP option %d is %d, %v", name, opt, v, err)
				}
			}
			flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: a child would inherit it", name)
			}
		})
	}
}

// TestConnLimit makes those wait that are too many.
func TestConnLimit(t *testing.T) { bothWays(t, testConnLimit) }

func testConnLimit(t *testing.T) {
	f := startForwarder(t)
	l, port := listen(t, "127.0.0.1:0")
	go greet(l, "hello")
	wantForward(t, f, port, true)
	f.mu.Lock()
	for range maxConnections {
		f.open[&conn{}] = struct{}{}
	}
	f.mu.Unlock()
	c := dialForward(t, port)
	eventually(t, "accepting has stopped", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.full) > 0
	})
	f.mu.Lock()
	clear(f.open)
	f.mu.Unlock()
	wantWord(t, c, "hello")
}

// TestConnRestartOnWildcard restarts a server on all addresses while a
// connection through the forward lives on.
func TestConnRestartOnWildcard(t *testing.T) { bothWays(t, testConnRestartOnWildcard) }

func testConnRestartOnWildcard(t *testing.T) {
	f := startForwarder(t)
	l, port := listen(t, "127.0.0.1:0")
	client := dialForward(t, port)
	server, err := l.Accept()
	must(t, err)
	defer server.Close()
	must(t, l.Close())
	wantForward(t, f, port, false)
	again, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	must(t, err)
	defer again.Close()
	_, err = server.Write([]byte("old"))
	must(t, err)
	must(t, server.Close())
	wantWord(t, client, "old")
	go greet(again, "new")
	wantWord(t, dialForward(t, port), "new")
}

// TestConnManyShort opens and closes many connections at once.
func TestConnManyShort(t *testing.T) { bothWays(t, testConnManyShort) }

func testConnManyShort(t *testing.T) {
	f := startForwarder(t)
	l, port := listen(t, "[::1]:0")
	go greet(l, "short")
	wantForward(t, f, port, true)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 25 {
				c, err := net.Dial("tcp", at(port))
				if err != nil {
					t.Error(err)
					return
				}
				wantWord(t, c, "short")
				c.Close()
			}
		})
	}
	wg.Wait()
	eventually(t, "all are gone", func() bool { return f.Stats().Connections == 0 })
	if s := f.Stats(); s.Accepted != 400 || s.Failed != 0 {
		t.Errorf("stats %+v", s)
	}
}
