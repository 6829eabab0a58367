package boot

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/wrenn/envd/internal/linux"
)

// errNoNIC means that the machine has loopback at most.
var errNoNIC = errors.New("no network interface")

// loopbackUp brings lo up; the kernel gives it its addresses.
func loopbackUp() error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return linux.LinkUp(lo.Index)
}

// networkUp configures the first NIC, unless it has an IPv4 address: then the
// kernel's ip= was here.
func networkUp(p Params) error {
	nic, err := firstNIC()
	if err != nil {
		return err
	}
	addrs, err := nic.Addrs()
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", nic.Name, err)
	}
	if slices.ContainsFunc(addrs, isIPv4) {
		return nil
	}
	// The gateway of an address that was given alone is not ours to guess.
	address, gateway := p.Address, p.Gateway
	if !address.IsValid() {
		address, gateway = defaultAddress, cmp.Or(gateway, defaultGateway)
	}
	if err := linux.LinkUp(nic.Index); err != nil {
		return err
	}
	if err := linux.AddAddress(nic.Index, address); err != nil {
		return err
	}
	if gateway == (netip.Addr{}) {
		return nil
	}
	return linux.AddDefaultRoute(nic.Index, gateway)
}

// firstNIC is the interface with the lowest number that has a link address.
func firstNIC() (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	slices.SortFunc(all, func(a, b net.Interface) int { return cmp.Compare(a.Index, b.Index) })
	for _, nic := range all {
		if nic.Flags&net.FlagLoopback == 0 && len(nic.HardwareAddr) == 6 {
			return &nic, nil
		}
	}
	return nil, errNoNIC
}

func isIPv4(a net.Addr) bool {
	n, ok := a.(*net.IPNet)
	return ok && n.IP.To4() != nil
}
