package guest

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// eventsHost is the name of the host's collector of events inside the guest.
const eventsHost = "events.wrenn.local"

// setEvents makes eventsHost stand for ip alone in the text of a hosts(5) file: in
// place of an earlier line for it, or at the end. Every other line stays byte
// for byte; a line that has other names beside it keeps those.
func setEvents(text []byte, ip netip.Addr) []byte {
	entry := ip.String() + "\t" + eventsHost + "\n"
	placed := false
	var out bytes.Buffer
	for line := range strings.Lines(string(text)) {
		rest, mine := withoutHost(line, eventsHost)
		if mine && rest == "" && !placed {
			rest, placed = entry, true
		}
		out.WriteString(rest)
	}
	if !placed {
		if b := out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' {
			out.WriteByte('\n')
		}
		out.WriteString(entry)
	}
	return out.Bytes()
}

// withoutHost takes name out of a line; mine tells whether it was in there. Of
// a line for nothing else nothing is left.
func withoutHost(line, name string) (rest string, mine bool) {
	text, comment, commented := strings.Cut(line, "#")
	words := strings.Fields(text)
	if len(words) < 2 || !slices.Contains(words[1:], name) {
		return line, false
	}
	others := slices.DeleteFunc(words[1:], func(w string) bool { return w == name })
	if len(others) == 0 {
		return "", true
	}
	rest = words[0] + "\t" + strings.Join(others, " ")
	if commented {
		return rest + " #" + comment, true
	}
	return rest + "\n", true
}
