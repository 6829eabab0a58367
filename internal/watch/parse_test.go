package watch

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// encode writes records as the kernel does: names padded with NULs to 16 bytes.
func encode(recs []record) []byte {
	var buf []byte
	for _, r := range recs {
		size := 0
		if r.name != "" {
			size = (len(r.name) + unix.SizeofInotifyEvent) / unix.SizeofInotifyEvent * unix.SizeofInotifyEvent
		}
		for _, v := range []uint32{uint32(r.wd), r.mask, r.cookie, uint32(size)} {
			buf = binary.NativeEndian.AppendUint32(buf, v)
		}
		buf = append(buf, r.name...)
		buf = append(buf, make([]byte, size-len(r.name))...)
	}
	return buf
}

func TestParse(t *testing.T) {
	want := []record{
		{wd: 1, mask: unix.IN_CREATE | unix.IN_ISDIR, name: "a"},
		{wd: 7, mask: unix.IN_MOVED_FROM, cookie: 9, name: strings.Repeat("n", 15)},
		{wd: 7, mask: unix.IN_MOVED_TO, cookie: 9, name: strings.Repeat("n", 16)},
		{wd: 1, mask: unix.IN_IGNORED},
		{wd: -1, mask: unix.IN_Q_OVERFLOW},
	}
	buf := encode(want)
	pos := int64(100)
	for i := range want {
		want[i].pos = pos
		pos += int64(len(encode(want[i : i+1])))
	}
	got, err := parse(nil, buf, 100)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for cut := range buf {
		got, err := parse(nil, buf[:cut], 100)
		if whole := int64(cut) == 0 || slices.ContainsFunc(want, func(r record) bool { return r.pos == int64(100+cut) }); (err == nil) != whole {
			t.Errorf("cut at %d: %d records, %v", cut, len(got), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(encode([]record{{wd: 1, mask: unix.IN_CREATE, name: "a"}, {wd: -1, mask: unix.IN_Q_OVERFLOW}}))
	f.Add(encode([]record{{wd: 3, mask: unix.IN_MOVED_FROM, cookie: 5, name: strings.Repeat("x", 255)}, {wd: 3, mask: unix.IN_MOVE_SELF}})[:280])
	f.Fuzz(func(t *testing.T, buf []byte) {
		recs, err := parse(nil, buf, 0)
		last := int64(-1)
		for _, r := range recs {
			if strings.ContainsRune(r.name, 0) {
				t.Errorf("name %q", r.name)
			}
			if r.pos <= last || r.pos >= int64(len(buf)) {
				t.Errorf("record at %d after %d of %d bytes", r.pos, last, len(buf))
			}
			last = r.pos
		}
		if err != nil {
			return
		}
		// What was understood says the same when written anew.
		again, err := parse(nil, encode(recs), 0)
		if err != nil || len(again) != len(recs) {
			t.Fatalf("again: %d records of %d, %v", len(again), len(recs), err)
		}
		for i := range recs {
			recs[i].pos, again[i].pos = 0, 0
			if recs[i] != again[i] {
				t.Errorf("again %v, first %v", again[i], recs[i])
			}
		}
	})
}

func FuzzEachEntry(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x18\x00\x04dir\x00\x00"))
	f.Fuzz(func(t *testing.T, buf []byte) {
		total := 0
		eachEntry(buf, func(name []byte, _ byte) {
			total += len(name)
			if s := string(name); s == "" || s == "." || s == ".." || strings.ContainsRune(s, 0) {
				t.Errorf("name %q", s)
			}
		})
		if total > len(buf) {
			t.Errorf("%d bytes of names from %d", total, len(buf))
		}
	})
}
