package server

import (
	"errors"
	"net/http"
	"testing"

	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/linux"
)

func TestHostsInterface(t *testing.T) {
	const lo, eth0, eth1, veth, bridge = 1, 2, 3, 4, 5
	virtual := []linux.Link{{Index: lo, Loopback: true}, {Index: veth, Kind: "veth"}, {Index: bridge, Kind: "bridge"}}
	cards := append([]linux.Link{{Index: eth0}, {Index: eth1}}, virtual...)
	by := func(index ...int) func() ([]int, error) { return func() ([]int, error) { return index, nil } }
	broken := func() ([]int, error) { return []int{veth}, errors.New("no netlink") }
	for _, row := range []struct {
		name   string
		index  int
		links  []linux.Link
		routes func() ([]int, error)
		want   bool
	}{
		{"card", eth0, cards, by(eth0), true},
		{"card without a route", eth1, cards, by(eth0), true},
		{"loopback", lo, cards, by(eth0), false},
		{"veth", veth, cards, by(eth0), false},
		{"bridge", bridge, cards, by(eth0), false},
		{"veth with the default route, beside cards", veth, cards, by(veth), false},
		{"unknown", 9, cards, by(9), false},
		{"none", 0, cards, by(0), false},
		{"no card, default route", veth, virtual, by(eth0, veth), true},
		{"no card, another's default route", bridge, virtual, by(veth), false},
		{"no card, no default route", veth, virtual, by(), false},
		{"no card, loopback with the default route", lo, virtual, by(lo), false},
		{"no card, routes unknown", veth, virtual, broken, false},
	} {
		if got := isHosts(row.index, row.links, row.routes); got != row.want {
			t.Errorf("%s: the host's %v", row.name, got)
		}
	}
}

// Loopback is the guest, and so is a request of no connection. The rest takes
// network namespaces: see test/life.
func TestFromGuest(t *testing.T) {
	leaktest.Check(t)
	if !FromGuest(t.Context()) {
		t.Error("a request without a connection is the host's")
	}
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !FromGuest(r.Context()) {
			w.WriteHeader(http.StatusTeapot)
		}
	}), quiet())
	for _, h2 := range []bool{false, true} {
		hc := client(t, h2)
		for range 2 {
			res, err := hc.Get("http://" + s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Errorf("HTTP/2 %v: loopback is the host's", h2)
			}
		}
	}
}
