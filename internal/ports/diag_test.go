package ports

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// message is a netlink message with a padded body.
func message(typ, flags uint16, body []byte) []byte {
	b := make([]byte, headerSize, align(headerSize+len(body)))
	binary.NativeEndian.PutUint32(b, uint32(headerSize+len(body)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags)
	b = append(b, body...)
	return b[:cap(b)]
}

// socket is what sock_diag says of one.
func socket(addr netip.AddrPort, inode uint32, attrs ...byte) []byte {
	b := make([]byte, messageSize)
	b[0], b[1] = unix.AF_INET6, stateListen
	ip := addr.Addr().AsSlice()
	if len(ip) == 4 {
		b[0] = unix.AF_INET
	}
	binary.BigEndian.PutUint16(b[4:], addr.Port())
	copy(b[8:], ip)
	binary.NativeEndian.PutUint32(b[messageSize-4:], inode)
	return append(b, attrs...)
}

func attr(typ uint16, value ...byte) []byte {
	b := make([]byte, unix.SizeofNlAttr, align(unix.SizeofNlAttr+len(value)))
	binary.NativeEndian.PutUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	binary.NativeEndian.PutUint16(b[2:], typ)
	b = append(b, value...)
	return b[:cap(b)]
}

func errno(code int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(code)) }

var (
	four = netip.MustParseAddrPort("127.0.0.1:80")
	six  = netip.MustParseAddrPort("[::]:443")
	done = message(unix.NLMSG_DONE, unix.NLM_F_MULTI, errno(0))
)

func TestParseDump(t *testing.T) {
	a := message(getSock, unix.NLM_F_MULTI, socket(four, 7, attr(8, 0)...))
	b := message(getSock, unix.NLM_F_MULTI, socket(six, 8, append(attr(8, 0), attr(attrV6Only, 1)...)...))
	mapped := netip.MustParseAddrPort("[::ffff:127.0.0.1]:80")
	for _, tc := range []struct {
		name string
		in   []byte
		want []Listener
		last bool
		err  error
	}{
		{"nothing", nil, nil, false, nil},
		{"end", done, nil, true, nil},
		{"end without a word", message(unix.NLMSG_DONE, 0, nil), nil, true, nil},
		{"part", a, []Listener{{Addr: four, Inode: 7}}, false, nil},
		{"whole", slices.Concat(a, b, done), []Listener{{Addr: four, Inode: 7}, {Addr: six, V6Only: true, Inode: 8}}, true, nil},
		{"mapped", message(getSock, 0, socket(mapped, 9)), []Listener{{Addr: four, Inode: 9}}, false, nil},
		{"other message", message(unix.NLMSG_NOOP, 0, nil), nil, false, nil},
		{"without a port", message(getSock, 0, socket(netip.AddrPortFrom(four.Addr(), 0), 7)), nil, false, nil},
		{"interrupted", slices.Concat(message(getSock, unix.NLM_F_DUMP_INTR, socket(four, 7)), done), nil, false, errInterrupted},
		{"interrupted at the end", slices.Concat(a, message(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, errno(0))), []Listener{{Addr: four, Inode: 7}}, false, errInterrupted},
		{"refused", message(unix.NLMSG_ERROR, 0, errno(-int32(unix.ENOENT))), nil, false, unix.ENOENT},
		{"failed at the end", message(unix.NLMSG_DONE, 0, errno(-int32(unix.ENOMEM))), nil, true, unix.ENOMEM},
		{"half a header", a[:10], nil, false, errShort},
		{"half a message", a[:60], nil, false, errShort},
		{"short socket", message(getSock, 0, make([]byte, 20)), nil, false, errShort},
		{"attribute too long", message(getSock, 0, socket(four, 7, 9, 0, 1, 0)), nil, false, errShort},
		{"attribute too short", message(getSock, 0, socket(four, 7, 1, 0, 1, 0)), nil, false, errShort},
		{"no length", make([]byte, 64), nil, false, errShort},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, last, err := parseDump(nil, tc.in)
			if !slices.Equal(got, tc.want) || last != tc.last || !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
				t.Errorf("got %v, %v, %v; want %v, %v, %v", got, last, err, tc.want, tc.last, tc.err)
			}
		})
	}
}

func TestParseDestroyed(t *testing.T) {
	if got := parseDestroyed(message(20, 0, socket(four, 0))); got != 80 {
		t.Errorf("port %d", got)
	}
	for _, b := range [][]byte{nil, make([]byte, 16), message(20, 0, make([]byte, 10))} {
		if got := parseDestroyed(b); got != 0 {
			t.Errorf("port %d from %v", got, b)
		}
	}
}

func FuzzParseDump(f *testing.F) {
	f.Add(done)
	f.Add(slices.Concat(message(getSock, 2, socket(six, 8, attr(attrV6Only, 1)...)), done))
	f.Add(message(unix.NLMSG_ERROR, 0, errno(-2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, last, err := parseDump(nil, b)
		for _, l := range list {
			if !l.Addr.IsValid() || l.Addr.Port() == 0 || l.Addr.Addr().Is4In6() {
				t.Errorf("listener %+v", l)
			}
		}
		if len(list)*(headerSize+messageSize) > len(b) {
			t.Errorf("%d listeners in %d bytes", len(list), len(b))
		}
		if errors.Is(err, errShort) && last {
			t.Error("short and complete")
		}
		_ = parseDestroyed(b)
	})
}
