package boot

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseParams(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tc := range []struct {
		name, line string
		want       Params
		bad        []string // parts of the errors, in order
	}{
		{"nothing", "", Params{}, nil},
		{"others' parameters", "console=ttyS0 reboot=k panic=1 pci=off ip=dhcp envd.other=1", Params{}, nil},
		{
			"all",
			"ro envd.hostname=box envd.ip=10.0.0.2/24 envd.gateway=10.0.0.1 envd.dns=10.0.0.1,fd00::1 envd.modules=virtio_net,nfsv3\n",
			Params{
				Hostname: "box", Address: netip.MustParsePrefix("10.0.0.2/24"), Gateway: addr("10.0.0.1"),
				DNS: []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}, Modules: []string{"virtio_net", "nfsv3"}, ReadOnly: true,
			},
			nil,
		},
		{"address without length", "envd.ip=169.254.0.25", Params{Address: netip.MustParsePrefix("169.254.0.25/30")}, nil},
		{"the later counts", "ro envd.hostname=a rw envd.hostname=b", Params{Hostname: "b"}, nil},
		{"quotes", `dyndbg="file a.c +p" "envd.hostname=quoted" x="y envd.hostname=inside"`, Params{Hostname: "quoted"}, nil},
		{"arguments of init", "envd.hostname=kernel -- envd.hostname=init", Params{Hostname: "kernel"}, nil},
		{
			"mistakes",
			"envd.hostname=a/b envd.ip=10.0.0.300 envd.ip=fd00::1/64 envd.gateway=fd00::1 envd.dns=,8.8.4.4 envd.modules=../x,nfs",
			Params{DNS: []netip.Addr{addr("8.8.4.4")}, Modules: []string{"nfs"}},
			[]string{`envd.hostname="a/b"`, `envd.ip="10.0.0.300"`, `envd.ip="fd00::1/64"`, `envd.gateway="fd00::1"`, `envd.dns=",8.8.4.4"`, `envd.modules="../x,nfs"`},
		},
		{"empty values", "envd.hostname= envd.hostname", Params{}, []string{`""`, `""`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, errs := ParseParams(tc.line)
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if !slices.EqualFunc(errs, tc.bad, func(err error, part string) bool { return strings.Contains(err.Error(), part) }) {
				t.Errorf("errors %v, want %q", errs, tc.bad)
			}
		})
	}
}

// FuzzParams checks that whatever the command line is, what comes of it can be
// used: as a host name in /etc/hosts, as addresses, as names of files.
func FuzzParams(f *testing.F) {
	f.Add("console=ttyS0 envd.hostname=box envd.ip=10.0.0.2/24")
	f.Fuzz(func(t *testing.T, line string) {
		p, _ := ParseParams(line)
		if p.Hostname != "" && !validHostname(p.Hostname) || strings.ContainsAny(p.Hostname, " \t\n#/") {
			t.Errorf("host name %q", p.Hostname)
		}
		if p.Address.IsValid() && !p.Address.Addr().Is4() || p.Gateway.IsValid() && !p.Gateway.Is4() {
			t.Errorf("address %v, gateway %v", p.Address, p.Gateway)
		}
		for _, m := range p.Modules {
			if m == "" || strings.ContainsAny(m, "/. \n") {
				t.Errorf("module %q", m)
			}
		}
	})
}
