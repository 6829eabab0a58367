// Package life plays a microVM around the built daemon: a guest that the daemon
// serves, a host outside of it with a metadata service, and a network namespace
// inside the guest, as a container has.
//
// The whole test runs in a network and a mount namespace of its own, by its
// binary re-executed: that is the guest, so that its files, its addresses and
// its identity are nobody else's. Host and container are threads with other
// network namespaces, joined to it by veth pairs. The clock of the machine is
// never set: the daemon runs without the capability, or with a clock of the
// test's.
package life

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// insideVar tells the re-executed test that it is the guest.
	insideVar = "ENVD_LIFE_INSIDE"
	// limit bounds whatever a test waits for.
	limit = 20 * time.Second
)

// Addresses of the guest, of the host that is its gateway, of the guest on the
// bridge to its container, and of the container.
const (
	guest4, guest6   = "10.77.0.2", "fd77::2"
	host4, host6     = "10.77.0.1", "fd77::1"
	bridge4, bridge6 = "10.88.0.1", "fd88::1"
	inner4, inner6   = "10.88.0.2", "fd88::2"
	forward          = "169.254.0.21"
	metadata         = "169.254.169.254"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // each test says what it takes
	}
	if os.Getenv(insideVar) == "" {
		os.Exit(outside())
	}
	if err := inside(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// outside runs this test again, as the guest.
func outside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// inside makes the machine the guest's alone: files that the daemon changes are
// copies, and the network is empty.
func inside() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	for _, dir := range []string{"/run", "/mnt"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/etc", "/usr/local"} {
		layers := filepath.Join("/run", dir)
		up, work := layers+"/up", layers+"/work"
		options := "lowerdir=" + dir + ",upperdir=" + up + ",workdir=" + work
		err := errors.Join(os.MkdirAll(up, 0o755), os.MkdirAll(work, 0o755), unix.Mount("overlay", dir, "overlay", 0, options))
		if err != nil {
			return fmt.Errorf("overlay %s: %w", dir, err)
		}
	}
	return ip("link set lo up")
}

func ip(args string) error {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, out)
	}
	return nil
}

// place is a network namespace: nil for the guest's own, or one that lives on a
// thread.
type place struct {
	tid  int
	work chan func()
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		p.tid = unix.Gettid()
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range p.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(p.work) })
	p.ip(t, "link set lo up")
	return p
}

// do runs f there.
func (p *place) do(f func()) {
	if p == nil {
		f()
		return
	}
	done := make(chan struct{})
	p.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (p *place) ip(t *testing.T, args string) {
	t.Helper()
	var err error
	p.do(func() { err = ip(args) })
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects to an address from there.
func (p *place) dial(network, addr string) (c net.Conn, err error) {
	p.do(func() {
		d := net.Dialer{Timeout: limit}
		c, err = d.Dial(network, addr)
	})
	return c, err
}

// world is the network around the guest.
type world struct {
	host, container *place
	mmds            *fakeMMDS
}

// newWorld connects host and container to the guest.
func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	w := &world{host: newPlace(t), container: newPlace(t)}
	var guest *place
	guest.ip(t, fmt.Sprintf("link add eth0 type veth peer name out netns %d", w.host.tid))
	t.Cleanup(func() {
		if err := errors.Join(ip("link del eth0"), ip("link del port0"), ip("link del br0")); err != nil {
			t.Error(err)
		}
	})
	guest.ip(t, "link add br0 type bridge")
	guest.ip(t, fmt.Sprintf("link add port0 type veth peer name eth0 netns %d", w.container.tid))
	guest.ip(t, "link set port0 master br0 up")
	address := func(p *place, dev, four, six string) {
		p.ip(t, "addr add "+four+"/24 dev "+dev)
		p.ip(t, "addr add "+six+"/64 dev "+dev+" nodad")
		p.ip(t, "link set "+dev+" up")
	}
	address(guest, "eth0", guest4, guest6)
	address(guest, "br0", bridge4, bridge6)
	address(w.host, "out", host4, host6)
	address(w.container, "eth0", inner4, inner6)
	for p, gateway := range map[*place][2]string{guest: {host4, host6}, w.container: {bridge4, bridge6}} {
		p.ip(t, "route add default via "+gateway[0])
		p.ip(t, "-6 route add default via "+gateway[1])
	}
	guest.ip(t, "addr add "+forward+"/32 dev eth0")
	w.host.ip(t, "route add "+forward+" dev out")
	w.host.ip(t, "addr add "+metadata+"/32 dev out")
	w.mmds = serveMMDS(t, w.host)
	return w
}
