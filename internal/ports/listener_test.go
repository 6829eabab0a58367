package ports

import (
	"net/netip"
	"testing"
	"time"
)

func TestWanted(t *testing.T) {
	fwd4, fwd6 := forwardAddr, netip.MustParseAddr("fd00::1")
	on := func(addr string, v6only bool) Listener {
		return Listener{Addr: netip.MustParseAddrPort(addr), V6Only: v6only}
	}
	for _, tc := range []struct {
		name      string
		listeners []Listener
		to        netip.Addr
		want      string // the addresses dialled for port 80, "" for not forwarded
	}{
		{"nobody", nil, fwd4, ""},
		{"loopback", []Listener{on("127.0.0.1:80", false)}, fwd4, "127.0.0.1"},
		{"IPv6 loopback", []Listener{on("[::1]:80", false)}, fwd4, "::1"},
		{"both", []Listener{on("[::1]:80", false), on("127.0.0.1:80", false)}, fwd4, "127.0.0.1 ::1"},
		{"another loopback address", []Listener{on("127.0.0.2:80", false)}, fwd4, ""},
		{"wildcard", []Listener{on("0.0.0.0:80", false)}, fwd4, ""},
		{"dual stack", []Listener{on("[::]:80", false)}, fwd4, ""},
		{"IPv6 alone", []Listener{on("[::]:80", true)}, fwd4, "::1"},
		{"IPv6 alone beside IPv4", []Listener{on("[::]:80", true), on("0.0.0.0:80", false)}, fwd4, ""},
		{"loopback beside the address", []Listener{on("127.0.0.1:80", false), on("169.254.0.21:80", false)}, fwd4, ""},
		{"loopback beside another address", []Listener{on("127.0.0.1:80", false), on("10.0.0.1:80", false)}, fwd4, "127.0.0.1"},
		{"another port", []Listener{on("127.0.0.1:81", false)}, fwd4, ""},
		{"loopback to IPv6", []Listener{on("127.0.0.1:80", false)}, fwd6, "127.0.0.1"},
		{"wildcard to IPv6", []Listener{on("0.0.0.0:80", false)}, fwd6, "127.0.0.1"},
		{"IPv6 wildcard to IPv6", []Listener{on("[::]:80", true)}, fwd6, ""},
		{"the daemon's", []Listener{on("127.0.0.1:49983", false)}, fwd4, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			all := wanted(tc.listeners, tc.to, 49983, func(uint16) bool { return false })
			for _, a := range all[80] {
				if a.IsValid() {
					if got != "" {
						got += " "
					}
					got += a.String()
				}
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if _, ok := all[49983]; ok {
				t.Error("the daemon's own port is forwarded")
			}
		})
	}
	// A forward of ours is no reason to close it.
	ours := []Listener{on("127.0.0.1:80", false), on("169.254.0.21:80", false)}
	if all := wanted(ours, fwd4, 1, func(uint16) bool { return true }); len(all) != 1 {
		t.Errorf("beside its own forward: %v", all)
	}
}

func TestPace(t *testing.T) {
	for _, tc := range []struct {
		busy bool
		cost time.Duration
		want time.Duration
	}{
		{true, 20 * time.Microsecond, lookOften},
		{false, 20 * time.Microsecond, lookRarely},
		{true, 5 * time.Millisecond, 250 * time.Millisecond},
		{false, time.Millisecond, 2 * time.Second},
		{false, 50 * time.Millisecond, idlest},
		{true, 100 * time.Millisecond, lookRarely},
	} {
		if got := pace(tc.busy, tc.cost); got != tc.want {
			t.Errorf("busy %v, cost %v: %v, want %v", tc.busy, tc.cost, got, tc.want)
		}
	}
}
