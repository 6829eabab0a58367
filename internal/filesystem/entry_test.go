package filesystem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// countingNames knows alice and counts what it is asked.
type countingNames struct{ asked map[uint32]int }

func (c countingNames) UserName(uid uint32) string {
	c.asked[uid]++
	if uid == alice.UID {
		return "alice"
	}
	return ""
}

func (c countingNames) GroupName(gid uint32) string {
	c.asked[gid]++
	return map[uint32]string{alice.GID: "wonderland"}[gid]
}

func TestStat(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		v.Names = countingNames{map[uint32]int{}}
		file := filepath.Join(dir, "file")
		write(t, file, "12345")
		must(t, os.Chown(file, int(alice.UID), int(bob.GID)))
		must(t, os.Chmod(file, 0o750|fs.ModeSetuid))
		must(t, unix.Setxattr(file, "user.e2b.tag", []byte("v"), 0))
		must(t, unix.Setxattr(file, "user.other", []byte("v"), 0))
		must(t, unix.Setxattr(file, "user.e2b.binary", []byte{0, 200}, 0))
		e, err := v.Stat("file")
		must(t, err)
		if e.Name != "file" || e.Path != file || e.Type != TypeFile || e.Size != 5 || e.Perm != 0o750 {
			t.Errorf("entry %+v", e)
		}
		if e.Mode.String() != "urwxr-x---" || e.Owner != "alice" || e.Group != fmt.Sprint(bob.GID) || e.SymlinkTarget != "" {
			t.Errorf("entry %+v with permissions %v", e, e.Mode)
		}
		if len(e.Metadata) != 1 || e.Metadata["tag"] != "v" {
			t.Errorf("metadata %v", e.Metadata)
		}
		if st, _ := os.Stat(file); !st.ModTime().Equal(e.ModTime) || st.Mode() != e.Mode {
			t.Errorf("entry %+v, want %v %v", e, st.ModTime(), st.Mode())
		}
	})
}

func TestStatSymlink(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		must(t, os.MkdirAll(filepath.Join(dir, "real/sub"), 0o750))
		must(t, os.Chown(filepath.Join(dir, "real"), int(alice.UID), int(alice.GID)))
		write(t, filepath.Join(dir, "real/f"), "x")
		must(t, unix.Setxattr(filepath.Join(dir, "real/f"), "user.e2b.k", []byte("v"), 0))
		for link, target := range map[string]string{
			"dir": "real", "file": "dir/f", "broken": "nowhere", "loop": "loop2", "loop2": "loop",
			"magic": "/proc/self/ns/net", "null": "/dev/null",
		} {
			must(t, os.Symlink(target, filepath.Join(dir, link)))
		}
		for _, test := range []struct {
			name   string
			kind   Type
			perm   uint32
			target string
		}{
			{"dir", TypeDirectory, 0o750, dir + "/real"},
			{"file", TypeFile, 0o644, dir + "/real/f"},
			{"broken", TypeUnknown, 0, dir + "/broken"},
			{"loop", TypeUnknown, 0, dir + "/loop"},
			{"null", TypeUnknown, 0o666, "/dev/null"},
		} {
			e, err := v.Stat(test.name)
			must(t, err)
			if e.Type != test.kind || e.Perm != test.perm || e.SymlinkTarget != test.target {
				t.Errorf("%s: %+v", test.name, e)
			}
			if e.Mode.String() != "Lrwxrwxrwx" {
				t.Errorf("%s: permissions %v", test.name, e.Mode)
			}
		}
		if e, err := v.Stat("magic"); err != nil || e.SymlinkTarget != dir+"/magic" {
			t.Errorf("magic: %+v, %v", e, err)
		}
		if e, _ := v.Stat("file"); e.Metadata["k"] != "v" {
			t.Errorf("metadata of the target: %v", e.Metadata)
		}
	})
}

func TestStatErrors(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		write(t, filepath.Join(dir, "f"), "")
		for path, want := range map[string]error{
			"missing":                        fs.ErrNotExist,
			"f/below":                        fs.ErrNotExist,
			"~other":                         ErrInvalid,
			strings.Repeat("n", 256):         ErrInvalid,
			"/" + strings.Repeat("x/", 2048): ErrInvalid,
		} {
			_, err := v.Stat(path)
			wantErr(t, err, want)
		}
	})
}

func TestListOrderAndDepth(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		for _, d := range []string{"a/b/c", "a-b", "z"} {
			must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
		}
		for _, f := range []string{"a/b/c/f", "a/f", "a.txt", "B", "\xff\xfe", "new\nline", "z/é"} {
			write(t, filepath.Join(dir, f), "")
		}
		must(t, os.Symlink("a", filepath.Join(dir, "link")))
		must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
		for depth := range uint32(6) {
			var want []string
			must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				rel, _ := filepath.Rel(dir, path)
				if levels := strings.Count(rel, "/") + 1; rel != "." && levels <= int(max(depth, 1)) {
					want = append(want, rel)
				}
				return err
			}))
			entries, err := list(v, dir, depth)
			must(t, err)
			if got := paths(entries, dir); !slices.Equal(got, want) {
				t.Errorf("depth %d: %q\nwant %q", depth, got, want)
			}
		}
		// Through a link: paths are under the name asked for.
		entries, err := list(v, "link", 2)
		must(t, err)
		if got := paths(entries, dir); !slices.Equal(got, []string{"link/b", "link/b/c", "link/f"}) {
			t.Errorf("through the link: %q", got)
		}
	})
}

func TestListErrors(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		write(t, filepath.Join(dir, "file"), "")
		must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
		for path, want := range map[string]error{"file": ErrNotDirectory, "fifo": ErrNotDirectory, "none": fs.ErrNotExist} {
			_, err := list(v, path, 1)
			wantErr(t, err, want)
		}
		stop := errors.New("stop")
		wantErr(t, v.List(dir, 1, func(Entry) error { return stop }), stop)
	})
}

// TestListAsksForEachOwnerOnce is trap 32: owners were looked up per entry.
func TestListAsksForEachOwnerOnce(t *testing.T) {
	dir := userDir(t)
	for i := range 300 {
		write(t, filepath.Join(dir, fmt.Sprint(i)), "")
	}
	names := countingNames{map[uint32]int{}}
	v := as(alice, dir, false)
	v.Names = names
	_, err := list(v, "", 1)
	must(t, err)
	if names.asked[0] != 2 {
		t.Errorf("root was looked up %d times, want once as user and once as group", names.asked[0])
	}
}

// BenchmarkList compares with os.ReadDir and an Lstat of each entry.
func BenchmarkList(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		dir := b.TempDir()
		for i := range n {
			write(b, filepath.Join(dir, fmt.Sprintf("file-%06d", i)), "")
		}
		b.Run(fmt.Sprintf("entries=%d/floor", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				entries, err := os.ReadDir(dir)
				must(b, err)
				for _, e := range entries {
					_, err := os.Lstat(filepath.Join(dir, e.Name()))
					must(b, err)
				}
			}
		})
		b.Run(fmt.Sprintf("entries=%d/list", n), func(b *testing.B) {
			b.ReportAllocs()
			v := as(User{}, dir, false)
			for b.Loop() {
				got := 0
				must(b, v.List(dir, 1, func(Entry) error { got++; return nil }))
				if got != n {
					b.Fatal(got)
				}
			}
		})
		must(b, os.RemoveAll(dir))
	}
}

func list(v *View, path string, depth uint32) (entries []Entry, err error) {
	err = v.List(path, depth, func(e Entry) error {
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

func paths(entries []Entry, below string) (rel []string) {
	for _, e := range entries {
		rel = append(rel, strings.TrimPrefix(e.Path, below+"/"))
	}
	return rel
}
