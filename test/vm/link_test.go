package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	guestIP    = "169.254.0.21"
	hostIP     = "169.254.0.22"
	metadataIP = "169.254.169.254"
)

// link is the host's end of a machine's network: a tap device in the network
// namespace of the test. All have the same addresses, as on a host with a
// namespace for each machine; sockets are bound to the device instead.
type link struct {
	tap  string
	http *http.Client // to the machine
	meta *metadata

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu; to the machine
}

var links atomic.Int32

func openLink() (*link, error) {
	l := &link{tap: fmt.Sprintf("tap%d", links.Add(1)), conns: map[net.Conn]struct{}{}}
	for _, args := range []string{
		"tuntap add dev " + l.tap + " mode tap",
		"addr add " + hostIP + "/30 dev " + l.tap,
		"addr add " + metadataIP + "/32 dev " + l.tap,
		"link set " + l.tap + " up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	// More than one connection at a time, HTTP/2, and none left for ever: a
	// machine that was ended does not say so.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	l.http = &http.Client{Transport: &http.Transport{
		Protocols:   protocols,
		DialContext: l.dial,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
	}}
	var err error
	l.meta, err = serveMetadata(l)
	return l, err
}

// dial connects to the machine.
func (l *link) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, Control: l.bind}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[conn] = struct{}{}
	return conn, nil
}

// sever resets all connections to the machine. While it is frozen that never
// reaches it: it is left with connections to nobody.
func (l *link) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.conns {
		_ = conn.(*net.TCPConn).SetLinger(0) // closed already, perhaps
		_ = conn.Close()
	}
	clear(l.conns)
}

func (l *link) bind(_, _ string, c syscall.RawConn) error {
	var err error
	ctlErr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), l.tap) })
	return errors.Join(ctlErr, err)
}

// listen opens a port on the host's side of this link alone.
func (l *link) listen(addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: l.bind}
	return lc.Listen(context.Background(), "tcp", addr)
}

// fresh gives up connections to a machine that is there no more.
func (l *link) fresh() { l.http.CloseIdleConnections() }

func (l *link) close() error {
	l.fresh()
	err := l.meta.close()
	out, ipErr := exec.Command("ip", "link", "del", l.tap).CombinedOutput()
	if ipErr != nil {
		ipErr = fmt.Errorf("remove %s: %w: %s", l.tap, ipErr, out)
	}
	return errors.Join(err, ipErr)
}

// namespace runs the tests again in a network namespace of their own: the
// addresses are link-local ones that the machine may use itself.
func namespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		return 1
	}
	return 0
}
