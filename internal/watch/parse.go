package watch

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// record is one struct inotify_event (inotify(7)).
type record struct {
	name   string // without the padding; empty for the watched inode itself
	pos    int64  // offset of the record in everything ever read
	mask   uint32
	cookie uint32 // joins the two halves of a rename
	wd     int32  // -1 for IN_Q_OVERFLOW
}

func (r *record) is(bits uint32) bool { return r.mask&bits != 0 }
func (r *record) isDir() bool         { return r.is(unix.IN_ISDIR) }

// errTruncated cannot come from the kernel, which never splits a record.
var errTruncated = errors.New("truncated inotify record")

// parse appends the records in buf to recs. The first one lies at pos.
func parse(recs []record, buf []byte, pos int64) ([]record, error) {
	for len(buf) > 0 {
		if len(buf) < unix.SizeofInotifyEvent {
			return recs, errTruncated
		}
		r := record{
			wd:     int32(binary.NativeEndian.Uint32(buf)), // the bits of an int
			mask:   binary.NativeEndian.Uint32(buf[4:]),
			cookie: binary.NativeEndian.Uint32(buf[8:]),
			pos:    pos,
		}
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		if size > len(buf) {
			return recs, errTruncated
		}
		name := buf[unix.SizeofInotifyEvent:size]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		r.name = string(name)
		recs = append(recs, r)
		buf = buf[size:]
		pos += int64(size)
	}
	return recs, nil
}
