package filesystem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteNewFile(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		e, err := v.Write("~/a/b/f", strings.NewReader("contents"), Upload{Size: -1, Metadata: Metadata{"k": "v"}})
		must(t, err)
		path := filepath.Join(dir, "a/b/f")
		wantContents(t, path, "contents")
		for p, perm := range map[string]uint32{"a": 0o755, "a/b": 0o755, "a/b/f": 0o644} {
			wantOwner(t, filepath.Join(dir, p), alice)
			if st := lstat(t, filepath.Join(dir, p)); st.Mode&0o7777 != perm {
				t.Errorf("%s has mode %o", p, st.Mode)
			}
		}
		if e.Name != "f" || e.Path != path || e.Type != TypeFile || e.Size != 8 || e.Metadata["k"] != "v" {
			t.Errorf("entry %+v", e)
		}
	})
}

func TestWriteExistingFile(t *testing.T) {
	for _, atomic := range []bool{false, true} {
		t.Run(fmt.Sprintf("atomic=%v", atomic), func(t *testing.T) {
			modes(t, func(t *testing.T, v *View, dir string) {
				path := filepath.Join(dir, "f")
				write(t, path, "a long old text")
				must(t, os.Chown(path, int(alice.UID), int(alice.GID)))
				must(t, os.Chmod(path, 0o4711|fs.ModeSetuid))
				must(t, unix.Setxattr(path, "user.e2b.old", []byte("v"), 0))
				must(t, unix.Setxattr(path, "user.mine", []byte("v"), 0))
				must(t, os.Symlink("f", filepath.Join(dir, "link")))
				before := lstat(t, path)
				e, err := v.Write("link", strings.NewReader("new"),
					Upload{Size: 3, Metadata: Metadata{"new": "w"}, Atomic: atomic})
				must(t, err)
				wantContents(t, path, "new")
				after := lstat(t, path)
				if (after.Ino == before.Ino) == atomic || after.Mode&0o777 != 0o711 {
					t.Errorf("inode %d then %d, mode %o", before.Ino, after.Ino, after.Mode)
				}
				if setuid := after.Mode&unix.S_ISUID != 0; setuid && (atomic || v.Confined) {
					t.Errorf("new contents run with somebody's rights: mode %o", after.Mode)
				}
				wantOwner(t, path, alice)
				wantNames(t, dir, "f", "link")
				if len(e.Metadata) != 1 || e.Metadata["new"] != "w" || e.Name != "link" {
					t.Errorf("entry %+v", e)
				}
				if _, err := unix.Getxattr(path, "user.mine", make([]byte, 9)); err != nil {
					t.Errorf("attribute of somebody else: %v", err)
				}
				// None sent clears.
				_, err = v.Write("f", strings.NewReader(""), Upload{Size: 0, Atomic: atomic})
				must(t, err)
				if e, _ := v.Stat("f"); e.Metadata != nil || e.Size != 0 {
					t.Errorf("entry %+v", e)
				}
			})
		})
	}
}

// TestWriteTakesOverOwner: root's reach makes the file the user's; the user's
// own reach cannot, and writes where it may.
func TestWriteTakesOverOwner(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		path := filepath.Join(dir, "f")
		write(t, path, "old")
		must(t, os.Chmod(path, 0o666))
		_, err := upload(v, "f", "new")
		must(t, err)
		wantContents(t, path, "new")
		if v.Confined {
			wantOwner(t, path, User{})
		} else {
			wantOwner(t, path, alice)
		}
	})
}

func TestWriteAtomicKeepsOwner(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		path := filepath.Join(dir, "f")
		write(t, path, "old")
		must(t, os.Chmod(path, 0o666))
		must(t, os.Chown(path, int(bob.UID), int(bob.GID)))
		_, err := v.Write("f", strings.NewReader("new"), Upload{Size: 3, Atomic: true})
		if v.Confined {
			wantErr(t, err, fs.ErrPermission) // to give a file away is root's
			wantContents(t, path, "old")
		} else {
			must(t, err)
			wantContents(t, path, "new")
		}
		wantOwner(t, path, bob)
		wantNames(t, dir, "f")
	})
}

func TestWriteThroughLinks(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		must(t, os.Symlink("target", filepath.Join(dir, "dangling")))
		_, err := upload(v, "dangling", "x")
		must(t, err)
		wantContents(t, filepath.Join(dir, "target"), "x")
		wantOwner(t, filepath.Join(dir, "target"), alice)
		must(t, os.Symlink("missing/target", filepath.Join(dir, "nowhere")))
		_, err = upload(v, "nowhere", "x")
		wantErr(t, err, fs.ErrNotExist)
	})
}

func TestWriteRefusesUnopened(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		refused := special(t, dir)
		write(t, filepath.Join(dir, "file"), "")
		refused["file/x"] = ErrNotDirectory
		for path, want := range refused {
			for _, atomic := range []bool{false, true} {
				_, err := v.Write(path, strings.NewReader("x"), Upload{Size: 1, Atomic: atomic})
				wantErr(t, err, want)
			}
			_, err := v.Resume(path, 0, strings.NewReader("x"), Upload{Size: 1})
			wantErr(t, err, want)
		}
	})
}

func TestWriteSourceBreaksOff(t *testing.T) {
	gone := errors.New("client went away")
	modes(t, func(t *testing.T, v *View, dir string) {
		for name, src := range map[string]io.Reader{
			"own error":  brokenReader("half", gone),
			"unexpected": brokenReader("half", io.ErrUnexpectedEOF),
			"too short":  strings.NewReader("half"),
			"file":       fileOf(t, "half"),
		} {
			_, err := v.Write(name, src, Upload{Size: 8})
			wantErr(t, err, ErrSource)
			if want := map[string]error{"own error": gone}[name]; want != nil {
				wantErr(t, err, want)
			} else {
				wantErr(t, err, io.ErrUnexpectedEOF)
			}
			// What came is there to be resumed.
			wantContents(t, filepath.Join(dir, name), "half")
			_, err = v.Resume(name, 4, strings.NewReader(" and"), Upload{Size: 4})
			must(t, err)
			wantContents(t, filepath.Join(dir, name), "half and")
			must(t, v.Remove(name))
		}
		write(t, filepath.Join(dir, "old"), "old")
		must(t, os.Chown(filepath.Join(dir, "old"), int(alice.UID), int(alice.GID)))
		_, err := v.Write("old", brokenReader("half", gone), Upload{Size: -1, Atomic: true})
		wantErr(t, err, gone)
		wantContents(t, filepath.Join(dir, "old"), "old")
		wantNames(t, dir, "old")
	})
}

func fileOf(t *testing.T, contents string) *os.File {
	path := filepath.Join(t.TempDir(), "source")
	write(t, path, contents)
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWriteLargeFromEverySource(t *testing.T) {
	want := random(3<<20 + 17)
	modes(t, func(t *testing.T, v *View, dir string) {
		for name, src := range map[string]io.Reader{
			"memory":       bytes.NewReader(want),
			"file":         fileOf(t, string(want)),
			"part of file": io.LimitReader(fileOf(t, string(want)+"more"), int64(len(want))),
		} {
			_, err := v.Write(name, src, Upload{Size: int64(len(want))})
			must(t, err)
			wantContents(t, filepath.Join(dir, name), string(want))
		}
	})
}

// TestWriteAtomicIsSeenWhole reads while contents are replaced.
func TestWriteAtomicIsSeenWhole(t *testing.T) {
	dir := userDir(t)
	v := as(alice, dir, false)
	path := filepath.Join(dir, "f")
	write(t, path, strings.Repeat("0", 1<<20))
	stop, seen := make(chan struct{}), make(chan error)
	go func() {
		for {
			b, err := os.ReadFile(path)
			if err == nil && (len(b) != 1<<20 || b[0] != b[len(b)-1]) {
				err = fmt.Errorf("%d bytes from %c to %c", len(b), b[0], b[len(b)-1])
			}
			select {
			case <-stop:
				seen <- err
				return
			default:
			}
			if err != nil {
				<-stop
				seen <- err
				return
			}
		}
	}()
	for i := range 30 {
		_, err := v.Write("f", strings.NewReader(strings.Repeat(string(rune('1'+i%9)), 1<<20)), Upload{Size: 1 << 20, Atomic: true})
		must(t, err)
	}
	close(stop)
	must(t, <-seen)
}

func TestResume(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		path := filepath.Join(dir, "a/f")
		_, err := v.Resume("a/f", 1, strings.NewReader("x"), Upload{Size: 1})
		wantErr(t, err, ErrOffsetPastEnd)
		wantNames(t, dir)
		_, err = v.Resume("a/f", 0, strings.NewReader("012345"), Upload{Size: 6, Metadata: Metadata{"k": "v"}})
		must(t, err)
		wantOwner(t, path, alice)
		e, err := v.Resume("a/f", 6, strings.NewReader("6789"), Upload{Size: 4})
		must(t, err)
		wantContents(t, path, "0123456789")
		if e.Size != 10 || e.Metadata["k"] != "v" {
			t.Errorf("entry %+v", e)
		}
		_, err = v.Resume("a/f", 11, strings.NewReader("x"), Upload{Size: 1})
		wantErr(t, err, ErrOffsetPastEnd)
		e, err = v.Resume("a/f", 2, strings.NewReader("ab"), Upload{Size: -1, Metadata: Metadata{"n": "v"}})
		must(t, err)
		wantContents(t, path, "01ab456789")
		if len(e.Metadata) != 1 || e.Metadata["n"] != "v" {
			t.Errorf("metadata %v", e.Metadata)
		}
	})
}

func TestMetadataLimits(t *testing.T) {
	for name, test := range map[string]struct {
		m  Metadata
		ok bool
	}{
		"none":             {nil, true},
		"longest key":      {Metadata{strings.Repeat("k", 246): "v"}, true},
		"key too long":     {Metadata{strings.Repeat("k", 247): "v"}, false},
		"empty key":        {Metadata{"": "v"}, false},
		"empty value":      {Metadata{"k": ""}, true},
		"all of it":        {Metadata{"k": strings.Repeat("v", 4096-9-1)}, true},
		"one byte more":    {Metadata{"k": strings.Repeat("v", 4096-9)}, false},
		"together":         {Metadata{"a": strings.Repeat("v", 2048-10), "b": strings.Repeat("v", 2048-10)}, true},
		"together one too": {Metadata{"a": strings.Repeat("v", 2048-10), "b": strings.Repeat("v", 2048-9)}, false},
		"printable ends":   {Metadata{" ~": " ~"}, true},
		"control in key":   {Metadata{"a\x1f": "v"}, false},
		"delete in value":  {Metadata{"a": "\x7f"}, false},
		"not ASCII":        {Metadata{"a": "é"}, false},
		"not UTF-8":        {Metadata{"a": "\xff"}, false},
		"newline":          {Metadata{"a": "\n"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.m.Validate(); (err == nil) != test.ok || err != nil && !errors.Is(err, ErrInvalid) {
				t.Error(err)
			}
		})
	}
	dir := userDir(t)
	v := as(alice, dir, false)
	bad := Upload{Metadata: Metadata{"": ""}}
	_, err := v.Write("f", strings.NewReader(""), bad)
	wantErr(t, err, ErrInvalid)
	_, err = v.Resume("f", 0, strings.NewReader(""), bad)
	wantErr(t, err, ErrInvalid)
	wantNames(t, dir)
}

// FuzzMetadata sets what Validate lets through on a real file.
func FuzzMetadata(f *testing.F) {
	for _, seed := range [][2]string{{"k", "v"}, {"", ""}, {"K ~", " "}, {"\x00", "\x00"}, {"é", "\xff"}, {"a", "\n"}} {
		f.Add(seed[0], seed[1])
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, key, value string) {
		m := Metadata{key: value}
		file, err := os.CreateTemp(dir, "")
		must(t, err)
		defer os.Remove(file.Name())
		defer file.Close()
		if m.Validate() != nil {
			return
		}
		v := View{}
		e, err := v.Write(file.Name(), strings.NewReader(""), Upload{Metadata: m})
		if errors.Is(err, ErrNoSpace) && len(key)+len(value) > 3000 {
			return // more than one block of ext4 holds
		}
		must(t, err)
		if len(e.Metadata) != 1 || e.Metadata[key] != value {
			t.Fatalf("%q became %q", m, e.Metadata)
		}
	})
}

func TestCompose(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		big := string(random(1 << 20))
		for name, contents := range map[string]string{"1": "first ", "2": big, "3": ""} {
			_, err := upload(v, name, contents)
			must(t, err)
		}
		e, err := v.Compose("out/all", []string{"1", "~/2", filepath.Join(dir, "3")}, nil)
		must(t, err)
		wantContents(t, filepath.Join(dir, "out/all"), "first "+big)
		wantOwner(t, filepath.Join(dir, "out/all"), alice)
		wantNames(t, dir, "out")
		wantNames(t, filepath.Join(dir, "out"), "all")
		if e.Path != filepath.Join(dir, "out/all") || e.Size != 6+1<<20 || e.Perm != 0o644 {
			t.Errorf("entry %+v", e)
		}
		// A source twice, onto an existing file.
		_, err = upload(v, "x", "x")
		must(t, err)
		must(t, os.Chmod(filepath.Join(dir, "out/all"), 0o640))
		e, err = v.Compose("out/all", []string{"x", "x"}, Metadata{"k": "v"})
		must(t, err)
		wantContents(t, filepath.Join(dir, "out/all"), "xx")
		if e.Perm != 0o640 || e.Metadata["k"] != "v" {
			t.Errorf("entry %+v", e)
		}
	})
}

func TestComposeErrors(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		refused := special(t, dir)
		_, err := upload(v, "good", "good")
		must(t, err)
		_, err = upload(v, "same", "same")
		must(t, err)
		must(t, os.Link(filepath.Join(dir, "same"), filepath.Join(dir, "same-link")))
		for name, test := range map[string]struct {
			to   string
			from []string
			want error
		}{
			"no sources":         {"out", nil, ErrInvalid},
			"no destination":     {"", []string{"good"}, ErrInvalid},
			"empty source":       {"out", []string{"good", ""}, ErrInvalid},
			"missing source":     {"out", []string{"good", "missing"}, fs.ErrNotExist},
			"destination":        {"same", []string{"good", "same"}, ErrInvalid},
			"destination linked": {"same", []string{"good", "same-link"}, ErrInvalid},
			"named differently":  {"new", []string{"good", "./x/../new"}, fs.ErrNotExist},
			"onto a directory":   {"dir", []string{"good"}, ErrIsDirectory},
			"onto a fifo":        {"fifo", []string{"good"}, ErrNotRegular},
		} {
			_, err := v.Compose(test.to, test.from, nil)
			if !errors.Is(err, test.want) {
				t.Errorf("%s: %v, want %v", name, err, test.want)
			}
		}
		for path, want := range refused {
			_, err := v.Compose("out", []string{"good", path}, nil)
			wantErr(t, err, want)
		}
		wantContents(t, filepath.Join(dir, "good"), "good")
		wantContents(t, filepath.Join(dir, "same"), "same")
		wantNames(t, dir, "dir", "fifo", "good", "loop", "no-driver", "null", "same", "same-link", "socket", "to-fifo")
	})
}

// BenchmarkWriteSmall compares with what a plain handler does.
func BenchmarkWriteSmall(b *testing.B) {
	contents := random(1 << 10)
	b.Run("floor", func(b *testing.B) {
		dir := b.TempDir()
		for i := 0; b.Loop(); i++ {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
			must(b, err)
			_, err = io.Copy(f, struct{ io.Reader }{bytes.NewReader(contents)})
			must(b, err)
			must(b, f.Close())
		}
	})
	for _, confined := range []bool{false, true} {
		b.Run(fmt.Sprintf("write/confined=%v", confined), func(b *testing.B) {
			v := as(alice, userDir(b), confined)
			for i := 0; b.Loop(); i++ {
				_, err := v.Write(fmt.Sprint(i), bytes.NewReader(contents), Upload{Size: 1 << 10})
				must(b, err)
			}
		})
	}
}

// BenchmarkWriteLarge compares a copy through memory with io.Copy's.
func BenchmarkWriteLarge(b *testing.B) {
	contents := random(64 << 20)
	dir := userDir(b)
	v := as(alice, dir, false)
	b.Run("floor", func(b *testing.B) {
		b.SetBytes(int64(len(contents)))
		for b.Loop() {
			f, err := os.Create(filepath.Join(dir, "floor"))
			must(b, err)
			_, err = io.Copy(f, struct{ io.Reader }{bytes.NewReader(contents)})
			must(b, err)
			must(b, f.Close())
		}
	})
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(contents)))
		for b.Loop() {
			_, err := v.Write("write", struct{ io.Reader }{bytes.NewReader(contents)}, Upload{Size: int64(len(contents))})
			must(b, err)
		}
	})
}

// TestPathOfMaximalLength works at PATH_MAX: 4095 bytes and the final zero.
func TestPathOfMaximalLength(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		path := dir
		for len(path)+201 < pathMax-256 {
			path += "/" + strings.Repeat("d", 200)
		}
		path += "/" + strings.Repeat("d", pathMax-1-len(path)-1-200-1)
		path += "/" + strings.Repeat("f", 200)
		if len(path) != pathMax-1 {
			t.Fatalf("path of %d bytes", len(path))
		}
		_, err := upload(v, path, "deep")
		must(t, err)
		e, err := v.Stat(path)
		must(t, err)
		if e.Size != 4 {
			t.Errorf("entry %+v", e)
		}
		entries, err := list(v, dir, 1000)
		must(t, err)
		if last := entries[len(entries)-1]; last.Path != path {
			t.Errorf("last entry is %.30s... of %d bytes", last.Path, len(last.Path))
		}
		_, err = upload(v, path+"f", "")
		wantErr(t, err, ErrInvalid)
		must(t, v.Remove(filepath.Join(dir, strings.Repeat("d", 200))))
		wantNames(t, dir)
	})
}

func upload(v *View, path, contents string) (Entry, error) {
	return v.Write(path, strings.NewReader(contents), Upload{Size: int64(len(contents))})
}

// brokenReader yields contents and then err.
func brokenReader(contents string, err error) io.Reader {
	return io.MultiReader(strings.NewReader(contents), &failing{err})
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }
