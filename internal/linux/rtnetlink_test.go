package linux

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRoute configures the loopback of a network namespace of its own as if it
// were a first NIC, and asks the kernel what it made of it.
func TestRoute(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	address, gateway := netip.MustParsePrefix("169.254.0.21/30"), netip.MustParseAddr("169.254.0.22")
	if err := LinkUp(1); err != nil {
		t.Fatal(err)
	}
	if err := AddAddress(1, address); err != nil {
		t.Fatal(err)
	}
	if err := AddAddress(1, address); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same address again: %v", err)
	}
	if err := AddDefaultRoute(1, gateway); err != nil {
		t.Fatal(err)
	}
	lo, err := net.InterfaceByIndex(1)
	if err != nil {
		t.Fatal(err)
	}
	if lo.Flags&net.FlagUp == 0 {
		t.Errorf("flags %v", lo.Flags)
	}
	addrs, err := lo.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, a := range addrs {
		found = found || a.String() == address.String()
	}
	if !found {
		t.Errorf("addresses %v", addrs)
	}
	// /proc/thread-self, for the namespace is this thread's. Addresses are in
	// the machine's byte order.
	routes, err := os.ReadFile("/proc/thread-self/net/route")
	if err != nil {
		t.Fatal(err)
	}
	if want := "lo\t00000000\t1600FEA9"; !strings.Contains(string(routes), want) {
		t.Errorf("no route %q in\n%s", want, routes)
	}
	if err := LinkUp(4711); !errors.Is(err, unix.ENODEV) {
		t.Errorf("no such interface: %v", err)
	}
	if err := AddDefaultRoute(1, netip.MustParseAddr("203.0.113.1")); err == nil {
		t.Error("a gateway that no network reaches was accepted")
	}
}
