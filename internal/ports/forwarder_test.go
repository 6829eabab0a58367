package ports

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestForwardLoopback(t *testing.T) { bothWays(t, testForwardLoopback) }

func testForwardLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0", "[::ffff:127.0.0.1]:0"} {
		t.Run(addr, func(t *testing.T) {
			startForwarder(t)
			var l net.Listener
			if strings.Contains(addr, "ffff") {
				l = listenMapped(t)
			} else {
				l, _ = listen(t, addr)
			}
			go greet(l, "hello")
			wantWord(t, dialForward(t, portOf(l)), "hello")
		})
	}
}

// listenMapped listens on 127.0.0.1 with an IPv6 socket, as programs in Java do.
func listenMapped(t *testing.T) net.Listener {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	must(t, unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}))
	must(t, unix.Listen(fd, 16))
	l, err := net.FileListener(f)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func TestForwardLeftAlone(t *testing.T) { bothWays(t, testForwardLeftAlone) }

func testForwardLeftAlone(t *testing.T) {
	own, ownPort := listen(t, "127.0.0.1:0")
	defer own.Close()
	f := startForwarder(t, func(c *Config) { c.Own = ownPort })
	dual, err := net.Listen("tcp", "[::]:0")
	must(t, err)
	defer dual.Close()
	for name, port := range map[string]uint16{
		"daemon's own":         ownPort,
		"dual stack":           portOf(dual),
		"wildcard":             listenPort(t, "0.0.0.0:0"),
		"the address":          listenPort(t, forwardAddr.String()+":0"),
		"a resolver's address": listenPort(t, "127.0.0.53:0"),
	} {
		looked(t, f)
		if forwards(f, port) {
			t.Errorf("%s: port %d is forwarded", name, port)
		}
	}
	// Somebody else on the address beats a loopback listener.
	_, port := listen(t, forwardAddr.String()+":0")
	listen(t, fmt.Sprintf("127.0.0.1:%d", port))
	looked(t, f)
	if forwards(f, port) {
		t.Error("forwarded beside a listener on the address")
	}
}

func listenPort(t *testing.T, addr string) uint16 {
	t.Helper()
	_, port := listen(t, addr)
	return port
}

func TestForwardBothFamilies(t *testing.T) { bothWays(t, testForwardBothFamilies) }

func testForwardBothFamilies(t *testing.T) {
	f := startForwarder(t)
	four, port := listen(t, "127.0.0.1:0")
	six, err := net.Listen("tcp6", fmt.Sprintf("[::1]:%d", port))
	must(t, err)
	defer six.Close()
	go greet(four, "four")
	go greet(six, "six")
	looked(t, f)
	wantWord(t, dialForward(t, port), "four")
	must(t, four.Close())
	eventually(t, "the other family is used", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		fwd := f.forwards[port]
		return fwd != nil && !fwd.targets[0].IsValid()
	})
	wantWord(t, dialForward(t, port), "six")
	must(t, six.Close())
	wantForward(t, f, port, false)
}

// TestForwardRelisten closes and listens again in one process.
func TestForwardRelisten(t *testing.T) {
	f := startForwarder(t)
	l, port := listen(t, "127.0.0.1:0")
	for i := range 20 {
		word := fmt.Sprint("round ", i)
		go greet(l, word)
		wantWord(t, dialForward(t, port), word)
		must(t, l.Close())
		wantForward(t, f, port, false)
		var err error
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		must(t, err)
	}
	must(t, l.Close())
}

// TestForwardDoesNotStandInTheWay is a server that restarts on all addresses,
// in a tight loop: the moment its end is known it must be able to bind.
func TestForwardDoesNotStandInTheWay(t *testing.T) { bothWays(t, testForwardDoesNotStandInTheWay) }

func testForwardDoesNotStandInTheWay(t *testing.T) {
	// Never by looking: only the kernel's report is quick enough.
	f := startForwarder(t, func(c *Config) { c.Active = func() bool { return false } })
	const rounds = 50
	var waits []time.Duration
	for range rounds {
		cmd := helper(t, "listen", "127.0.0.1:0")
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		must(t, err)
		addr := netip.MustParseAddrPort(strings.TrimSpace(line))
		looked(t, f)
		if !forwards(f, addr.Port()) {
			t.Fatal("not forwarded")
		}
		must(t, in.Close())
		must(t, cmd.Wait())
		died := time.Now()
		var l net.Listener
		eventually(t, "bind the port on all addresses", func() bool {
			l, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", addr.Port()))
			return err == nil
		})
		waits = append(waits, time.Since(died))
		must(t, l.Close())
	}
	slices.Sort(waits)
	t.Logf("bound after median %v, at most %v", waits[rounds/2], waits[rounds-1])
	if waits[rounds/2] > 20*time.Millisecond {
		t.Errorf("the port is free only after %v", waits[rounds/2])
	}
}

// TestForwardSteeredIsNeverInTheWay binds all addresses in the instruction after
// the close of the loopback listener: a steered port is bound by nobody.
func TestForwardSteeredIsNeverInTheWay(t *testing.T) {
	f := startForwarder(t)
	for i := range 200 {
		l, port := listen(t, "127.0.0.1:0")
		looked(t, f)
		if !forwards(f, port) {
			t.Fatal("not forwarded")
		}
		if f.door == nil {
			t.Fatal("this kernel does not steer (CONFIG_BPF_SYSCALL, Linux 5.9)")
		}
		must(t, l.Close())
		again, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		// Until the change is noticed, the door leads to the new server.
		word := fmt.Sprint("round ", i)
		go greet(again, word)
		wantWord(t, dialForward(t, port), word)
		must(t, again.Close())
	}
}

// TestDoor: who comes to the door itself is turned away, and it is nobody's
// port.
func TestDoor(t *testing.T) {
	f := startForwarder(t)
	_, port := listen(t, "127.0.0.1:0")
	wantForward(t, f, port, true)
	f.mu.Lock()
	door := f.door.port
	f.mu.Unlock()
	c, err := net.Dial("tcp", at(door))
	if err == nil { // else the reset came first
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(patience)))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	ports, err := f.List()
	must(t, err)
	if len(ports) != 1 || ports[0].Addr.Port() != port {
		t.Errorf("ports %+v", ports)
	}
}

// TestForwardLostReports overruns the queue of the kernel's reports: what may
// have been lost is looked for.
func TestForwardLostReports(t *testing.T) {
	f := startForwarder(t, func(c *Config) { c.Active = func() bool { return false } })
	l, port := listen(t, "127.0.0.1:0")
	looked(t, f)
	if !forwards(f, port) {
		t.Fatal("not forwarded")
	}
	f.mu.Lock() // nobody reads the reports
	must(t, unix.SetsockoptInt(f.kernel.destroyed.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF, 1))
	for range 50 {
		other, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		must(t, other.Close())
	}
	must(t, l.Close())
	f.touched.Store(-int64(time.Hour)) // no look for another reason
	f.sleepLocked(time.Hour)
	f.mu.Unlock()
	wantForward(t, f, port, false)
}

func TestForwardSharedListener(t *testing.T) {
	f := startForwarder(t)
	l, port := listen(t, "127.0.0.1:0")
	// A second socket on the same port: the first one's end is not the end.
	second := listenReuse(t, l)
	looked(t, f)
	must(t, l.Close())
	go greet(second, "still here")
	looked(t, f)
	wantWord(t, dialForward(t, port), "still here")
	must(t, second.Close())
	wantForward(t, f, port, false)
}

// listenReuse makes another handle of a listener, as a child process has.
func listenReuse(t *testing.T, l net.Listener) net.Listener {
	t.Helper()
	file, err := l.(*net.TCPListener).File()
	must(t, err)
	defer file.Close()
	second, err := net.FileListener(file)
	must(t, err)
	t.Cleanup(func() { second.Close() })
	return second
}

func TestForwardThousandsOfListeners(t *testing.T) {
	const n = 1200
	f := startForwarder(t, func(c *Config) { c.bound = true })
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
	}
	eventually(t, "all are forwarded", func() bool { return f.Stats().Forwards == n })
	f.mu.Lock()
	raw, whole, err := f.kernel.listeners(nil)
	f.mu.Unlock()
	must(t, err)
	if len(raw) != 2*n || whole {
		t.Errorf("%d listeners, all at once: %v; want %d in parts", len(raw), whole, 2*n)
	}
}

// TestForwardLimit leaves the rest unforwarded, and takes them when there is room.
func TestForwardLimit(t *testing.T) { bothWays(t, testForwardLimit) }

func testForwardLimit(t *testing.T) {
	f := startForwarder(t)
	f.mu.Lock()
	f.most = 3
	f.mu.Unlock()
	var all []net.Listener
	for range 5 {
		l, _ := listen(t, "127.0.0.1:0")
		all = append(all, l)
	}
	eventually(t, "three are forwarded", func() bool { return f.Stats().Forwards == 3 })
	var rest []net.Listener
	for _, l := range all {
		if forwards(f, portOf(l)) {
			must(t, l.Close())
		} else {
			rest = append(rest, l)
		}
	}
	for _, l := range rest {
		wantForward(t, f, portOf(l), true)
	}
}

func TestForwardBusyAddress(t *testing.T) {
	f := startForwarder(t, func(c *Config) { c.bound = true })
	// Bound and not listening: the kernel does not list it, and it is in the way.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: forwardAddr.As4()}))
	sa, err := unix.Getsockname(fd)
	must(t, err)
	port := uint16(sa.(*unix.SockaddrInet4).Port)
	listen(t, fmt.Sprintf("127.0.0.1:%d", port))
	looked(t, f)
	if forwards(f, port) {
		t.Fatal("forwarded a port that is taken")
	}
	// To try again, and fail, is nothing that happens in the guest: it must not
	// keep us looking often.
	const longAgo = -int64(time.Hour)
	f.mu.Lock()
	f.touched.Store(longAgo)
	f.retryAt = f.began
	f.lookLocked()
	if f.touched.Load() != longAgo || !f.retryAt.After(f.began) {
		t.Errorf("touched at %d, to be tried again at %v", f.touched.Load(), f.retryAt)
	}
	f.mu.Unlock()
	must(t, unix.Close(fd))
	wantForward(t, f, port, true)
}

func TestQuiesce(t *testing.T) { bothWays(t, testQuiesce) }

func testQuiesce(t *testing.T) {
	f := startForwarder(t)
	l, port := listen(t, "127.0.0.1:0")
	wantForward(t, f, port, true)
	live := dialForward(t, port)
	server, err := l.Accept()
	must(t, err)
	defer server.Close()

	must(t, f.Quiesce(t.Context()))
	if c, err := net.Dial("tcp", at(port)); err == nil {
		c.Close()
		t.Error("still reachable")
	}
	// Nothing runs: neither the timer nor reports.
	var left unix.ItimerSpec
	f.mu.Lock()
	must(t, unix.TimerfdGettime(f.timer.FD(), &left))
	joined := f.kernel.joined
	f.mu.Unlock()
	if left.Value.Nano() != 0 || joined {
		t.Errorf("timer %v, joined %v while quiesced", left.Value, joined)
	}
	f.Touch()
	if forwards(f, port) {
		t.Error("a touch resumed")
	}
	// What was open goes on.
	_, err = server.Write([]byte("go on"))
	must(t, err)
	must(t, server.Close())
	wantWord(t, live, "go on")

	f.Resume()
	wantForward(t, f, port, true)
	go greet(l, "again")
	wantWord(t, dialForward(t, port), "again")
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *syncBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}

func TestAddressComesAndGoes(t *testing.T) { bothWays(t, testAddressComesAndGoes) }

func testAddressComesAndGoes(t *testing.T) {
	var log syncBuffer
	addr := netip.MustParseAddr("169.254.7.7")
	ip := func(verb string) {
		t.Helper()
		if out, err := exec.Command("ip", "addr", verb, addr.String()+"/30", "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("ip addr %s: %v: %s", verb, err, out)
		}
	}
	_, port := listen(t, "127.0.0.1:0")
	f := startForwarder(t, func(c *Config) {
		c.Address, c.Log = addr, slog.New(slog.NewTextHandler(&log, nil))
	})
	said := func(text string) func() bool {
		return func() bool { return strings.Count(log.String(), text) == 1 }
	}
	eventually(t, "one line says that the address is missing", said("not on this machine"))
	if got := f.Address(); got.IsValid() {
		t.Errorf("address %v", got)
	}
	ip("add")
	wantForward(t, f, port, true)
	eventually(t, "one line says that the address is there", said("loopback ports are forwarded"))
	log.Reset()
	ip("del")
	wantForward(t, f, port, false)
	eventually(t, "one line says that the address is gone", said("not on this machine"))
}

func TestForwardToIPv6(t *testing.T) { bothWays(t, testForwardToIPv6) }

func testForwardToIPv6(t *testing.T) {
	addr := netip.MustParseAddr("fd00:21::1")
	if out, err := exec.Command("ip", "addr", "replace", addr.String()+"/64", "dev", "lo", "nodad").CombinedOutput(); err != nil {
		t.Fatalf("ip addr add: %v: %s", err, out)
	}
	f := startForwarder(t, func(c *Config) { c.Address = addr })
	for _, on := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0"} {
		l, port := listen(t, on)
		go greet(l, on)
		wantForward(t, f, port, true)
		c, err := net.Dial("tcp", netip.AddrPortFrom(addr, port).String())
		must(t, err)
		wantWord(t, c, on)
		c.Close()
	}
	_, port := listen(t, "[::]:0")
	looked(t, f)
	if forwards(f, port) {
		t.Error("forwarded a wildcard that accepts")
	}
}

func TestClose(t *testing.T) { bothWays(t, testClose) }

func testClose(t *testing.T) {
	f := startForwarder(t)
	l, port := listen(t, "127.0.0.1:0")
	client := dialForward(t, port)
	server, err := l.Accept()
	must(t, err)
	defer server.Close()
	must(t, f.Close())
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connection after Close: %v", err)
	}
	f.Touch()
	f.Resume()
	must(t, f.Quiesce(t.Context()))
	if _, err := f.List(); !errors.Is(err, ErrClosed) {
		t.Errorf("List after Close: %v", err)
	}
	if _, err := f.Watch(); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
	must(t, f.Close())
}
