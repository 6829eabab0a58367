package api

import (
	"io/fs"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/filesystem"
	"github.com/wrenn/envd/internal/filesystem"
)

// checkEntries compares what the encoder makes of entries with what the
// generated code makes of their messages.
func checkEntries(t *testing.T, entries ...filesystem.Entry) {
	t.Helper()
	want := &pb.ListDirResponse{}
	for i := range entries {
		want.Entries = append(want.Entries, entryMessage(&entries[i]))
	}
	if _, err := proto.Marshal(want); err != nil {
		t.Fatalf("not a message: %v", err)
	}
	if _, err := protojson.Marshal(want); err != nil {
		t.Fatalf("not a JSON message: %v", err)
	}
	for _, json := range []bool{false, true} {
		enc := entryEncoder{json: json}
		var b []byte
		for i := range entries {
			b = enc.append(b, &entries[i])
		}
		b = enc.end(b)
		got, unmarshal := &pb.ListDirResponse{}, proto.Unmarshal
		if json {
			unmarshal = protojson.Unmarshal
		}
		if err := unmarshal(b, got); err != nil {
			t.Fatalf("json %v: %v: %.300q", json, err, b)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("json %v: got %v, expected %v", json, got, want)
		}
		for _, e := range got.Entries {
			if len(e.ProtoReflect().GetUnknown()) > 0 {
				t.Fatalf("unknown fields in %v", e)
			}
		}
		if size := proto.Size(want); !json && len(b) != size {
			t.Fatalf("%d bytes, expected %d", len(b), size)
		}
	}
}

func file(name string) filesystem.Entry {
	return filesystem.Entry{
		Name: name, Path: "/dir/" + name, Type: filesystem.TypeFile, Perm: 0o644, Mode: 0o644,
		Size: 1 << 40, ModTime: time.Unix(1700000000, 123456789), Owner: "root", Group: "4711",
	}
}

func TestEntryEncoder(t *testing.T) {
	checkEntries(t)
	checkEntries(t, filesystem.Entry{})
	link := file("link")
	link.Mode, link.SymlinkTarget, link.Type = fs.ModeSymlink|0o777, "/target\x00\x1f\"\\\u2028é", filesystem.TypeUnknown
	dir := file("dir")
	dir.Mode, dir.Type, dir.Metadata = fs.ModeDir|fs.ModeSticky|0o777, filesystem.TypeDirectory, filesystem.Metadata{"a": `"b"`, "c": ""}
	checkEntries(t, file("a"), link, dir, file("z"))
	// The first and the last mode of a permission, the first byte of a size.
	for _, size := range []int64{0, 1, 127, 128, 1<<63 - 1} {
		e := file("sized")
		e.Size, e.Perm = size, uint32(size&0o777)
		checkEntries(t, e)
	}
}

// TestNamesThatAreNotUTF8 checks that a name of any bytes can be sent: a
// message with one that is not UTF-8 could not be marshalled, and one file
// would make its whole directory unlistable.
func TestNamesThatAreNotUTF8(t *testing.T) {
	for name, want := range map[string]string{
		"plain": "plain", "é日本": "é日本", "a\xffb": "a\uFFFDb", "\xff\xfe": "\uFFFD", "\xe3\x81": "\uFFFD",
		"\xed\xa0\x80": "\uFFFD", "x\xc0\xafy\x80": "x\uFFFDy\uFFFD", "tab\tnewline\n\x7f": "tab\tnewline\n\x7f",
	} {
		if got := text(name); got != want {
			t.Errorf("%q: %q, expected %q", name, got, want)
		}
		e := file(name)
		e.Owner, e.Group, e.SymlinkTarget = name, name, name
		checkEntries(t, e, file("after"))
	}
}

// TestTimesBeyondMessages checks that a file whose time no message can hold
// does not make its directory unlistable.
func TestTimesBeyondMessages(t *testing.T) {
	for _, row := range []struct{ seconds, want int64 }{
		{0, 0},
		{-1, -1},
		{1 << 40, lastTime.Unix()},
		{-1 << 40, firstTime.Unix()},
		{firstTime.Unix(), firstTime.Unix()},
		{lastTime.Unix(), lastTime.Unix()},
	} {
		e := file("odd")
		e.ModTime = time.Unix(row.seconds, 5)
		checkEntries(t, e)
		if m := entryMessage(&e); m.ModifiedTime.Seconds != row.want || m.ModifiedTime.CheckValid() != nil {
			t.Errorf("%d: %v", row.seconds, m.ModifiedTime)
		}
	}
}

func FuzzEntryEncoder(f *testing.F) {
	f.Add("name", "/path/name", "", int64(0), uint32(0o644), int64(0), int64(0), "key", "value")
	f.Add("\xff", "/\xc3\x28", "/\x00\x01\"\\", int64(-1), uint32(0xffffffff), int64(1<<62), int64(999999999), "", "")
	f.Fuzz(func(t *testing.T, name, path, target string, size int64, mode uint32, sec, nsec int64, key, value string) {
		e := filesystem.Entry{
			Name: name, Path: path, SymlinkTarget: target, Size: size, Perm: mode & 0o777, Mode: fs.FileMode(mode),
			Type: filesystem.Type(mode % 3), ModTime: time.Unix(sec%(1<<50), nsec%1e9), Owner: name, Group: target,
		}
		if m := (filesystem.Metadata{key: value}); m.Validate() == nil {
			e.Metadata = m
		}
		checkEntries(t, e, e)
		if !utf8.ValidString(text(name)) {
			t.Errorf("%q is not UTF-8", text(name))
		}
	})
}
