package boot

import (
	"fmt"
	"net/netip"
	"strings"
)

// Defaults of the first network interface, from the wire contract: the address
// that ports are reached on, and the host's end of the link.
var (
	defaultAddress = netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 0, 21}), 30)
	defaultGateway = netip.AddrFrom4([4]byte{169, 254, 0, 22})
)

const (
	defaultHostname = "capsule"
	// defaultDNS is asked where neither the host nor the image names a server.
	defaultDNS = "8.8.8.8"
	// maxHostname is the kernel's limit, __NEW_UTS_LEN.
	maxHostname = 64
)

// Params are what the kernel's command line says to us. The zero value of a
// field means that it says nothing.
type Params struct {
	Hostname string
	Address  netip.Prefix // of the first NIC
	Gateway  netip.Addr
	DNS      []netip.Addr
	Modules  []string
	// ReadOnly: "ro" asks for a root that stays read-only.
	ReadOnly bool
}

// ParseParams reads a kernel command line, as /proc/cmdline has it: words
// between blanks, double quotes keep blanks together, "--" ends what is the
// kernel's. Of a parameter given twice the later counts. A value that makes no
// sense is left out, with an error that says so; the rest counts.
func ParseParams(line string) (p Params, errs []error) {
	bad := func(key, value, want string) {
		errs = append(errs, fmt.Errorf("kernel parameter %s=%q: not %s", key, value, want))
	}
	for word := range words(line) {
		if word == "--" {
			break
		}
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "ro":
			p.ReadOnly = true
		case "rw":
			p.ReadOnly = false
		case "envd.hostname":
			if !validHostname(value) {
				bad(key, value, "a host name")
				continue
			}
			p.Hostname = value
		case "envd.ip":
			prefix, err := parsePrefix(value)
			if err != nil {
				bad(key, value, "an IPv4 address with prefix length")
				continue
			}
			p.Address = prefix
		case "envd.gateway":
			gateway, err := netip.ParseAddr(value)
			if err != nil || !gateway.Is4() {
				bad(key, value, "an IPv4 address")
				continue
			}
			p.Gateway = gateway
		case "envd.dns":
			p.DNS = nil
			for server := range strings.SplitSeq(value, ",") {
				addr, err := netip.ParseAddr(server)
				if err != nil {
					bad(key, value, "IP addresses, separated by commas")
					continue
				}
				p.DNS = append(p.DNS, addr)
			}
		case "envd.modules":
			p.Modules = nil
			for name := range strings.SplitSeq(value, ",") {
				if !validModule(name) {
					bad(key, value, "module names, separated by commas")
					continue
				}
				p.Modules = append(p.Modules, name)
			}
		}
	}
	return p, errs
}

// words yields the parameters of a command line as the kernel cuts them.
func words(line string) func(func(string) bool) {
	return func(yield func(string) bool) {
		var word strings.Builder
		quoted, started := false, false
		for _, c := range []byte(line) {
			switch {
			case c == '"':
				quoted, started = !quoted, true
			case !quoted && (c == ' ' || c == '\t' || c == '\n'):
				if started && !yield(word.String()) {
					return
				}
				word.Reset()
				started = false
			default:
				word.WriteByte(c)
				started = true
			}
		}
		if started {
			yield(word.String())
		}
	}
}

// parsePrefix takes an address with its prefix length; without one it is /30,
// a link between two.
func parsePrefix(value string) (netip.Prefix, error) {
	if !strings.Contains(value, "/") {
		value += "/30"
	}
	p, err := netip.ParsePrefix(value)
	if err == nil && !p.Addr().Is4() {
		err = fmt.Errorf("%q is not IPv4", value)
	}
	return p, err
}

// validHostname accepts what can stand in /etc/hosts without changing it.
func validHostname(s string) bool {
	if s == "" || len(s) > maxHostname || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		if !alphanumeric(c) && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

func validModule(s string) bool {
	for _, c := range []byte(s) {
		if !alphanumeric(c) && c != '-' && c != '_' {
			return false
		}
	}
	return s != ""
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
