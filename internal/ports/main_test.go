package ports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn/envd/internal/leaktest"
)

const (
	// insideVar tells the re-executed test that it is in its own namespace.
	insideVar = "PORTS_TEST_INSIDE"
	// helperVar names the part that the re-executed test binary plays.
	helperVar = "PORTS_TEST_HELPER"
	// patience is how long an expected event may take on a busy machine.
	patience = 10 * time.Second
)

var forwardAddr = netip.MustParseAddr("169.254.0.21")

// TestMain runs all tests in a network namespace of their own, where loopback
// has the forward address as well.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(helperVar) != "":
		os.Exit(helperMain(os.Getenv(helperVar), os.Args[1:]))
	case os.Getenv(insideVar) == "":
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), insideVar+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "enter a network namespace:", err)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	// A fuzzing worker comes by here as well: what is there already is fine.
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "replace", forwardAddr.String() + "/30", "dev", "lo"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ip %v: %v: %s\n", args, err, out)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// helper is the test binary in another part. It ends with the test at the
// latest.
func helper(t testing.TB, part string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	// The race detector sleeps for a second at the end of a process.
	cmd.Env = append(os.Environ(), helperVar+"="+part, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

func helperMain(part string, args []string) int {
	if part != "listen" {
		fmt.Fprintln(os.Stderr, "unknown helper", part)
		return 2
	}
	// Listens on each address and says where, until its input ends.
	for _, addr := range args {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer l.Close()
		fmt.Println(l.Addr())
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// bound makes forwarders bind the ports, as where the kernel cannot steer.
var bound bool

// bothWays runs a test with ports that are steered and with bound ones.
func bothWays(t *testing.T, test func(t *testing.T)) {
	t.Run("steered", test)
	bound = true
	defer func() { bound = false }()
	t.Run("bound", test)
}

// startForwarder runs a forwarder to the end of the test.
func startForwarder(t testing.TB, change ...func(*Config)) *Forwarder {
	t.Helper()
	leaktest.Check(t)
	cfg := Config{
		Address: forwardAddr,
		Active:  func() bool { return true },
		bound:   bound,
		Log:     slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&cfg)
	}
	f, err := Open(cfg)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- f.Run(context.Background()) }()
	t.Cleanup(func() {
		must(t, f.Close())
		must(t, <-done)
	})
	eventually(t, "the forwarder has looked for its address", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.told
	})
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listen listens until the test ends, and answers the port.
func listen(t testing.TB, addr string) (net.Listener, uint16) {
	t.Helper()
	network := "tcp4" // tcp takes 0.0.0.0 for both families
	if addr[0] == '[' {
		network = "tcp6" // and tcp6 a wildcard for IPv6 alone
	}
	l, err := net.Listen(network, addr)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l, portOf(l)
}

func portOf(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// greet accepts connections and sends each a word and an end.
func greet(l net.Listener, word string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, word)
		_ = c.Close()
	}
}

func at(port uint16) string { return netip.AddrPortFrom(forwardAddr, port).String() }

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// dialForward connects to a port on the forward address once that works.
func dialForward(t testing.TB, port uint16) *net.TCPConn {
	t.Helper()
	var c net.Conn
	eventually(t, fmt.Sprintf("connect to port %d", port), func() (ok bool) {
		var err error
		c, err = net.Dial("tcp", at(port))
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*net.TCPConn)
}

// forwards tells whether the forwarder has the port.
func forwards(f *Forwarder, port uint16) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.forwards[port] != nil
}

// looked waits for a whole look that began after the call.
func looked(t testing.TB, f *Forwarder) {
	t.Helper()
	f.mu.Lock()
	f.lookLocked()
	f.mu.Unlock()
}

func wantForward(t testing.TB, f *Forwarder, port uint16, want bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("port %d forwarded: %v", port, want), func() bool { return forwards(f, port) == want })
}

// wantWord reads a whole answer.
func wantWord(t testing.TB, c net.Conn, word string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != word {
		t.Errorf("got %q, %v; want %q", got, err, word)
	}
}
