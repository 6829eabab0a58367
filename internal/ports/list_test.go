package ports

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func find(ports []Port, addr string) (Port, bool) {
	i := slices.IndexFunc(ports, func(p Port) bool { return p.Addr.String() == addr })
	if i < 0 {
		return Port{}, false
	}
	return ports[i], true
}

func TestList(t *testing.T) {
	own, ownPort := listen(t, "0.0.0.0:0")
	defer own.Close()
	f := startForwarder(t, func(c *Config) { c.Own = ownPort })
	cmd := helper(t, "listen", "127.0.0.1:0", "0.0.0.0:0")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { in.Close(); must(t, cmd.Wait()) }()
	lines := bufio.NewScanner(out)
	var addrs []string
	for len(addrs) < 2 && lines.Scan() {
		addrs = append(addrs, lines.Text())
	}
	addrs[1] = strings.Replace(addrs[1], "0.0.0.0", "[::]", 1) // Go's wildcard
	looked(t, f)
	ports, err := f.List()
	must(t, err)
	if len(ports) != 2 {
		t.Errorf("%d ports: %+v", len(ports), ports)
	}
	for i, addr := range addrs {
		p, ok := find(ports, addr)
		if !ok {
			t.Fatalf("no %s in %+v", addr, ports)
		}
		if p.PID != cmd.Process.Pid || !strings.Contains(p.Command, "127.0.0.1:0 0.0.0.0:0") || p.Forwarded != (i == 0) {
			t.Errorf("%+v; want process %d", p, cmd.Process.Pid)
		}
	}
	if got := f.Address(); got != forwardAddr {
		t.Errorf("address %v", got)
	}
}

// next answers the next events in the form of "opened 127.0.0.1:80 forwarded".
func next(t *testing.T, w *Watch) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, err := w.Next(ctx)
	must(t, err)
	var got []string
	for _, e := range events {
		s := "closed"
		if e.Opened {
			s = "opened"
		}
		s += " " + e.Port.Addr.String()
		if e.Opened && e.Port.Forwarded {
			s += " forwarded"
		}
		got = append(got, s)
	}
	return got
}

func wantEvents(t *testing.T, w *Watch, want ...string) {
	t.Helper()
	if got := next(t, w); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWatch(t *testing.T) {
	f := startForwarder(t, func(c *Config) { c.Active = func() bool { return false } })
	first, _ := listen(t, "127.0.0.1:0")
	w, err := f.Watch()
	must(t, err)
	defer w.Close()
	wantEvents(t, w, "opened "+first.Addr().String()+" forwarded")
	second, err := net.Listen("tcp4", "0.0.0.0:0")
	must(t, err)
	wantEvents(t, w, "opened "+second.Addr().String())
	must(t, second.Close())
	wantEvents(t, w, "closed "+second.Addr().String())
	must(t, first.Close())
	wantEvents(t, w, "closed "+first.Addr().String())

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v with nothing to tell", err)
	}
	must(t, f.Close())
	if _, err := w.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v after Close", err)
	}
}

// TestWatchWithoutAddress tells of ports also where none are forwarded.
func TestWatchWithoutAddress(t *testing.T) {
	f := startForwarder(t, func(c *Config) { c.Address = netip.MustParseAddr("192.0.2.1") })
	w, err := f.Watch()
	must(t, err)
	defer w.Close()
	l, _ := listen(t, "127.0.0.1:0")
	wantEvents(t, w, "opened "+l.Addr().String())
}

func TestDiff(t *testing.T) {
	port := func(n uint16, inode uint32, forwarded bool) Port {
		return Port{Addr: netip.AddrPortFrom(loopback4, n), inode: inode, Forwarded: forwarded}
	}
	for _, tc := range []struct {
		name     string
		old, now []Port
		want     string
	}{
		{"nothing", nil, nil, ""},
		{"same", []Port{port(1, 1, false)}, []Port{port(1, 1, false)}, ""},
		{"opened", nil, []Port{port(1, 1, false)}, "+1"},
		{"closed", []Port{port(1, 1, false)}, nil, "-1"},
		{"between", []Port{port(1, 1, false), port(3, 3, false)}, []Port{port(1, 1, false), port(2, 2, false), port(3, 3, false)}, "+2"},
		{"others", []Port{port(1, 1, false), port(3, 3, false)}, []Port{port(2, 2, false)}, "-1+2-3"},
		{"again", []Port{port(1, 1, false)}, []Port{port(1, 2, false)}, "-1+1"},
		{"forwarded now", []Port{port(1, 1, false)}, []Port{port(1, 1, true)}, "+1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			for _, e := range diff(tc.old, tc.now) {
				sign := "-"
				if e.Opened {
					sign = "+"
				}
				got += fmt.Sprint(sign, e.Port.Addr.Port())
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestSocketInode(t *testing.T) {
	for link, want := range map[string]uint32{
		"socket:[123]": 123, "pipe:[123]": 0, "socket:[123": 0, "socket:[x]": 0, "socket:[-1]": 0, "/tmp/x": 0,
	} {
		if got, ok := socketInode(link); got != want || ok != (want != 0) {
			t.Errorf("%q: %d, %v", link, got, ok)
		}
	}
}
