package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// setHostname names the machine and makes the name resolvable: what cannot
// resolve its own name waits for DNS at each start (sudo, Java, MPI).
func setHostname(name, hosts string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nameHost(name, hosts)
}

// nameHost makes name resolvable by the file hosts, whose text it only adds to.
func nameHost(name, hosts string) error {
	old, err := os.ReadFile(hosts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read hosts: %w", err)
	}
	more := addHost(string(old), name)[len(old):]
	if more == "" {
		return nil
	}
	f, err := os.OpenFile(hosts, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write hosts: %w", err)
	}
	if _, err = f.WriteString(more); err != nil { // a full disk takes a part
		err = errors.Join(err, f.Truncate(int64(len(old))))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write hosts: %w", err)
	}
	return nil
}

// addHost adds what lacks of localhost and name to the text of /etc/hosts, and
// changes nothing else. 127.0.1.1 is Debian's address for the name of a machine
// without a lasting one.
func addHost(text, name string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	for _, line := range [][2]string{
		{"localhost", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
		{name, "127.0.1.1\t" + name + "\n"},
	} {
		if !hasHost(text, line[0]) {
			text += line[1]
		}
	}
	return text
}

func hasHost(text, name string) bool {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		for i, field := range strings.Fields(line) {
			if i > 0 && strings.EqualFold(field, name) {
				return true
			}
		}
	}
	return false
}

// writeResolver names DNS servers in file when there is none or it is empty:
// the given ones, else those that the kernel's ip= got (pnp), else our default.
func writeResolver(file, pnp string, servers []netip.Addr) error {
	if old, err := os.ReadFile(file); err == nil && len(bytes.TrimSpace(old)) > 0 {
		return nil
	}
	var text strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&text, "nameserver %v\n", s)
	}
	if text.Len() == 0 {
		text.WriteString(kernelResolver(pnp))
	}
	if text.Len() == 0 {
		text.WriteString("nameserver " + defaultDNS + "\n")
	}
	// A link into a /run that is new and empty is common in images.
	if target, err := os.Readlink(file); err == nil {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(file); err != nil {
				return fmt.Errorf("remove link to %s: %w", target, err)
			}
		}
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("write resolver: %w", err)
	}
	return nil
}

// kernelResolver takes the servers from /proc/net/pnp, which is written as
// resolv.conf is, with comments and lines of the kernel's own.
func kernelResolver(pnp string) string {
	b, err := os.ReadFile(pnp)
	if err != nil {
		return ""
	}
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "nameserver "); ok && strings.TrimSpace(value) != "0.0.0.0" {
			text.WriteString(line)
		}
	}
	return text.String()
}
