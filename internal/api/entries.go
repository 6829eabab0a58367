package api

import (
	"encoding/binary"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/internal/filesystem"
)

// The times that a google.protobuf.Timestamp holds. Some filesystems have
// others, which no client could be told.
var (
	firstTime = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)
)

func messageTime(t time.Time) time.Time {
	switch {
	case t.Before(firstTime):
		return firstTime
	case t.After(lastTime):
		return lastTime
	default:
		return t.UTC()
	}
}

var entryTypes = map[filesystem.Type]pb.FileType{
	filesystem.TypeUnknown:   pb.FileType_FILE_TYPE_UNSPECIFIED,
	filesystem.TypeFile:      pb.FileType_FILE_TYPE_FILE,
	filesystem.TypeDirectory: pb.FileType_FILE_TYPE_DIRECTORY,
}

func entryMessage(e *filesystem.Entry) *pb.EntryInfo {
	m := &pb.EntryInfo{
		Name:         text(e.Name),
		Type:         entryTypes[e.Type],
		Path:         text(e.Path),
		Size:         e.Size,
		Mode:         e.Perm,
		Permissions:  e.Mode.String(),
		Owner:        text(e.Owner),
		Group:        text(e.Group),
		ModifiedTime: timestamppb.New(messageTime(e.ModTime)),
		Metadata:     e.Metadata, // ASCII, as the domain sees to
	}
	if e.SymlinkTarget != "" {
		m.SymlinkTarget = proto.String(text(e.SymlinkTarget))
	}
	return m
}

// entryEncoder encodes a ListDirResponse entry by entry, with no message
// objects. It makes what entryMessage's messages would be, which is tested; the
// zero value begins a response.
type entryEncoder struct {
	json bool

	begun   bool
	scratch []byte // of an entry or a map's entry, whose length comes first
}

// isJSON takes the codec from a request's headers.
func isJSON(h http.Header) bool { return framerFor(h.Get("Content-Type")).json }

func (c *entryEncoder) append(dst []byte, e *filesystem.Entry) []byte {
	if c.json {
		return c.appendJSON(dst, e)
	}
	return c.appendProto(dst, e)
}

// end appends what closes the response. There are no more entries.
func (c *entryEncoder) end(dst []byte) []byte {
	switch {
	case !c.json:
		return dst
	case !c.begun:
		return append(dst, '{', '}')
	default:
		return append(dst, ']', '}')
	}
}

// Field numbers: of ListDirResponse, EntryInfo, Timestamp and the entries of a
// map.
const (
	entriesField protowire.Number = 1

	entryName, entryType, entryPath, entrySize, entryMode protowire.Number = 1, 2, 3, 4, 5
	entryPermissions, entryOwner, entryGroup              protowire.Number = 6, 7, 8
	entryModified, entryTarget, entryMetadata             protowire.Number = 9, 10, 11

	secondsField, nanosField protowire.Number = 1, 2
	keyField, valueField     protowire.Number = 1, 2
)

func (c *entryEncoder) appendProto(dst []byte, e *filesystem.Entry) []byte {
	b := c.scratch[:0]
	b = protoString(b, entryName, text(e.Name))
	b = protoNumber(b, entryType, uint64(entryTypes[e.Type]))
	b = protoString(b, entryPath, text(e.Path))
	b = protoNumber(b, entrySize, uint64(e.Size))
	b = protoNumber(b, entryMode, uint64(e.Perm))
	b = protoString(b, entryPermissions, e.Mode.String())
	b = protoString(b, entryOwner, text(e.Owner))
	b = protoString(b, entryGroup, text(e.Group))
	b = protoTime(b, entryModified, messageTime(e.ModTime))
	if e.SymlinkTarget != "" {
		b = protoString(b, entryTarget, text(e.SymlinkTarget))
	}
	for key, value := range e.Metadata {
		b = protoPair(b, entryMetadata, key, value)
	}
	c.scratch = b
	dst = protowire.AppendTag(dst, entriesField, protowire.BytesType)
	return protowire.AppendBytes(dst, b)
}

// protoString, and the other ones, leave a zero value out.
func protoString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func protoNumber(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

func protoTime(b []byte, field protowire.Number, t time.Time) []byte {
	var stamp [2 + 2*binary.MaxVarintLen64]byte
	s := protoNumber(stamp[:0], secondsField, uint64(t.Unix()))
	s = protoNumber(s, nanosField, uint64(t.Nanosecond()))
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func protoPair(b []byte, field protowire.Number, key, value string) []byte {
	size := protowire.SizeTag(keyField) + protowire.SizeBytes(len(key)) +
		protowire.SizeTag(valueField) + protowire.SizeBytes(len(value))
	b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(size))
	b = protowire.AppendString(protowire.AppendTag(b, keyField, protowire.BytesType), key)
	return protowire.AppendString(protowire.AppendTag(b, valueField, protowire.BytesType), value)
}

func (c *entryEncoder) appendJSON(dst []byte, e *filesystem.Entry) []byte {
	if c.begun {
		dst = append(dst, ',')
	} else {
		dst = append(dst, `{"entries":[`...)
		c.begun = true
	}
	dst = jsonString(append(dst, `{"name":`...), e.Name)
	if t := entryTypes[e.Type]; t != 0 {
		dst = jsonString(append(dst, `,"type":`...), pb.FileType_name[int32(t)])
	}
	dst = jsonString(append(dst, `,"path":`...), e.Path)
	if e.Size != 0 {
		dst = append(dst, `,"size":"`...)
		dst = append(strconv.AppendInt(dst, e.Size, 10), '"')
	}
	if e.Perm != 0 {
		dst = strconv.AppendUint(append(dst, `,"mode":`...), uint64(e.Perm), 10)
	}
	dst = jsonString(append(dst, `,"permissions":`...), e.Mode.String())
	dst = jsonString(append(dst, `,"owner":`...), e.Owner)
	dst = jsonString(append(dst, `,"group":`...), e.Group)
	dst = messageTime(e.ModTime).AppendFormat(append(dst, `,"modifiedTime":"`...), time.RFC3339Nano)
	dst = append(dst, '"')
	if e.SymlinkTarget != "" {
		dst = jsonString(append(dst, `,"symlinkTarget":`...), e.SymlinkTarget)
	}
	if len(e.Metadata) > 0 {
		dst = jsonObject(append(dst, `,"metadata":`...), e.Metadata)
	}
	return append(dst, '}')
}

func jsonObject(dst []byte, m map[string]string) []byte {
	sep := byte('{')
	for key, value := range m {
		dst = append(jsonString(append(dst, sep), key), ':')
		dst, sep = jsonString(dst, value), ','
	}
	return append(dst, '}')
}

// jsonString appends s as RFC 8259 has strings, sanitised like text.
func jsonString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	if !utf8.ValidString(s) {
		s = text(s)
	}
	dst = append(dst, '"')
	for {
		i := 0
		for i < len(s) && s[i] >= ' ' && s[i] != '"' && s[i] != '\\' {
			i++
		}
		dst = append(dst, s[:i]...)
		switch {
		case i == len(s):
			return append(dst, '"')
		case s[i] < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[s[i]>>4], hex[s[i]&0xf])
		default:
			dst = append(dst, '\\', s[i])
		}
		s = s[i+1:]
	}
}
