package linux

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// namespace is a network namespace that lives on one thread.
type namespace struct {
	tid  int
	work chan func()
}

// newNamespace makes one that ends with the test. It has loopback only.
func newNamespace(t *testing.T) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	n := &namespace{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		n.tid = unix.Gettid()
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.work) })
	n.ip(t, "link set lo up")
	return n
}

// do runs f in the namespace.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

func (n *namespace) ip(t *testing.T, args string) {
	t.Helper()
	n.do(func() {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Errorf("ip %s: %v: %s", args, err, out)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
}

// index is that of the interface with this name.
func (n *namespace) index(t *testing.T, name string) (index int) {
	t.Helper()
	n.do(func() {
		i, err := net.InterfaceByName(name)
		if err != nil {
			t.Error(err)
			return
		}
		index = i.Index
	})
	return index
}

// TestIngressInterface connects over every family and every way in.
func TestIngressInterface(t *testing.T) {
	leaktest.Check(t)
	guest, host := newNamespace(t), newNamespace(t)
	guest.ip(t, "link add br9 type bridge") // so that indexes differ
	guest.ip(t, fmt.Sprintf("link add eth0 type veth peer name out netns %d", host.tid))
	guest.ip(t, "addr add 10.0.0.2/24 dev eth0")
	guest.ip(t, "addr add fd00::2/64 dev eth0 nodad")
	guest.ip(t, "link set eth0 up")
	host.ip(t, "addr add 10.0.0.1/24 dev out")
	host.ip(t, "addr add fd00::1/64 dev out nodad")
	host.ip(t, "link set out up")
	guest.ip(t, "addr add fe80::2/64 dev eth0 nodad")
	host.ip(t, "addr add fe80::1/64 dev out nodad")
	lo, eth0 := guest.index(t, "lo"), guest.index(t, "eth0")
	linkLocal := fmt.Sprintf("fe80::2%%%d", host.index(t, "out"))
	for _, listen := range []string{"tcp", "tcp4", "tcp6"} {
		var l net.Listener
		guest.do(func() {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			var err error
			if l, err = lc.Listen(t.Context(), listen, ":0"); err != nil {
				t.Error(err)
			}
		})
		if l == nil {
			return
		}
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		for _, row := range []struct {
			from *namespace
			addr string
			want int
		}{
			{guest, "127.0.0.1", lo},
			{guest, "127.9.9.9", lo},
			{guest, "::1", lo},
			// See IngressInterface: not lo.
			{guest, "10.0.0.2", eth0},
			{guest, "fd00::2", eth0},
			{host, "10.0.0.2", eth0},
			{host, "fd00::2", eth0},
			{host, linkLocal, eth0},
		} {
			if six := strings.Contains(row.addr, ":"); listen == "tcp4" && six || listen == "tcp6" && !six {
				continue
			}
			for _, spoken := range []bool{false, true} { // also once packets came later
				got, err := ingressOf(l, row.from, net.JoinHostPort(row.addr, fmt.Sprint(port)), spoken)
				if err != nil || got != row.want {
					t.Errorf("%s to %s, spoken %v: interface %d, %v; want %d", listen, row.addr, spoken, got, err, row.want)
				}
			}
		}
	}
}

// ingressOf dials addr from a namespace and asks the accepted side, twice.
func ingressOf(l net.Listener, from *namespace, addr string, spoken bool) (index int, err error) {
	var c net.Conn
	from.do(func() { c, err = net.Dial("tcp", addr) })
	if err != nil {
		return 0, err
	}
	defer c.Close()
	accepted, err := l.Accept()
	if err != nil {
		return 0, err
	}
	defer accepted.Close()
	if spoken {
		var b [1]byte
		if _, err := c.Write(b[:]); err != nil {
			return 0, err
		}
		if _, err := accepted.Read(b[:]); err != nil {
			return 0, err
		}
	}
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	for range 2 {
		before := index
		if ctlErr := raw.Control(func(fd uintptr) { index, err = IngressInterface(fd) }); ctlErr != nil {
			return 0, ctlErr
		}
		if before != 0 && index != before {
			return 0, fmt.Errorf("first %d, then %d", before, index)
		}
	}
	return index, err
}

func TestIngressOfNoConnection(t *testing.T) {
	leaktest.Check(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if i, err := IngressInterface(fd); err == nil {
			t.Errorf("a listener came in on interface %d", i)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestIsLocal(t *testing.T) {
	leaktest.Check(t)
	n := newNamespace(t)
	n.ip(t, "link add v0 type veth peer name v1")
	n.ip(t, "addr add 10.0.0.2/24 dev v0")
	n.ip(t, "addr add fd00::2/64 dev v0 nodad")
	n.ip(t, "addr add fe80::2/64 dev v0 nodad")
	n.ip(t, "link set v0 up")
	n.ip(t, "link set v1 up")
	n.ip(t, "route add local 10.7.0.0/16 dev lo")
	n.ip(t, "-6 route add local fd07::/64 dev lo")
	// Who has an address of another interface, and came in on this one.
	n.ip(t, "link add w0 type veth peer name w1")
	n.ip(t, "addr add 169.254.0.21/30 dev w0")
	n.ip(t, "link set w0 up")
	index := n.index(t, "v0")
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.3.2.1": true, "::1": true, "10.0.0.2": true, "fd00::2": true, "fe80::2": true,
		"::ffff:10.0.0.2": true, "10.7.8.9": true, "fd07::9": true,
		"169.254.0.21": true, "::ffff:169.254.0.21": true, "169.254.0.22": false,
		"10.0.0.1": false, "::ffff:10.0.0.1": false, "fd00::1": false, "fe80::1": false, "192.0.2.1": false, "2001:db8::1": false,
	} {
		n.do(func() {
			if got, err := IsLocal(netip.MustParseAddr(addr), index); err != nil || got != want {
				t.Errorf("%s: local %v, %v", addr, got, err)
			}
		})
	}
}

func TestLinksAndRoutes(t *testing.T) {
	leaktest.Check(t)
	n := newNamespace(t)
	n.ip(t, "link add v0 type veth peer name v1")
	n.ip(t, "link add br0 type bridge")
	n.ip(t, "tuntap add mode tun tun0")
	n.ip(t, "addr add 10.0.0.2/24 dev v0")
	n.ip(t, "addr add fd00::2/64 dev br0 nodad")
	for _, name := range []string{"v0", "v1", "br0"} {
		n.ip(t, "link set "+name+" up")
	}
	kinds := map[string]string{"lo": "", "v0": "veth", "v1": "veth", "br0": "bridge", "tun0": "tun"}
	n.do(func() {
		links, err := Links()
		if err != nil {
			t.Error(err)
			return
		}
		for name, kind := range kinds {
			i, err := net.InterfaceByName(name)
			if err != nil {
				t.Error(err)
				continue
			}
			if want := (Link{Index: i.Index, Loopback: name == "lo", Kind: kind}); !slices.Contains(links, want) {
				t.Errorf("no %s %+v in %+v", name, want, links)
			}
		}
		if routes, err := DefaultRoutes(); err != nil || len(routes) != 0 {
			t.Errorf("default routes %v, %v; want none", routes, err)
		}
	})
	n.ip(t, "route add default via 10.0.0.1")
	n.ip(t, "route add unreachable 10.9.0.0/16")
	n.ip(t, "-6 route add default via fd00::1 dev br0")
	n.do(func() {
		routes, err := DefaultRoutes()
		v0, br0 := net.Interface{}, net.Interface{}
		for name, i := range map[string]*net.Interface{"v0": &v0, "br0": &br0} {
			if found, err := net.InterfaceByName(name); err == nil {
				*i = *found
			}
		}
		if err != nil || !slices.Equal(routes, []int{v0.Index, br0.Index}) {
			t.Errorf("default routes %v, %v; want %v", routes, err, []int{v0.Index, br0.Index})
		}
	})
}

func FuzzNestedString(f *testing.F) {
	attr := func(kind uint16, text string) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(text)))
		b = append(binary.NativeEndian.AppendUint16(b, kind), text...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	f.Add(append(attr(7, "xyz"), attr(unix.IFLA_INFO_KIND, "veth\x00")...))
	f.Add(attr(unix.IFLA_INFO_KIND, ""))
	f.Add([]byte{3, 0, 1, 0})
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		got := nestedString(b, unix.IFLA_INFO_KIND)
		if len(got) > len(b) || strings.Contains(got, "\x00") {
			t.Errorf("%q from %x", got, b)
		}
		front := attr(unix.IFLA_INFO_KIND, "front\x00")
		if got := nestedString(append(front, b...), unix.IFLA_INFO_KIND); got != "front" {
			t.Errorf("%q", got)
		}
	})
}
