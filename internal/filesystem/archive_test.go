package filesystem

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPackAndUnpack(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		makeTree(t, filepath.Join(dir, "tree"), alice, false)
		// A user's own archive has no set-ID and sticky bits when it is back.
		want := describeTree(t, filepath.Join(dir, "tree"))
		if v.User.UID != 0 {
			must(t, os.Chmod(filepath.Join(dir, "tree/file"), 0o750))
			must(t, os.Chmod(filepath.Join(dir, "tree/sub"), 0o700))
			want = describeTree(t, filepath.Join(dir, "tree"))
			must(t, os.Chmod(filepath.Join(dir, "tree/file"), 0o750|fs.ModeSetuid))
			must(t, os.Chmod(filepath.Join(dir, "tree/sub"), 0o700|fs.ModeSticky))
		}
		var archive bytes.Buffer
		must(t, v.Pack(&archive, "tree"))
		must(t, v.Unpack("new/copy", &archive))
		got := describeTree(t, filepath.Join(dir, "new/copy"))
		delete(got, ".")
		delete(want, ".")
		// Archives have no mode bits that the umask takes from a FIFO, nor its time.
		delete(got, "fifo")
		delete(want, "fifo")
		wantSameTree(t, got, want)
		if st := lstat(t, filepath.Join(dir, "new/copy/fifo")); st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Uid != alice.UID {
			t.Errorf("fifo has mode %o", st.Mode)
		}
	})
}

// TestPackAttributes: a name that no archive can hold is left out.
func TestPackAttributes(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "tree"), 0o755))
		for _, path := range []string{"tree", "tree/f"} {
			if path != "tree" {
				write(t, filepath.Join(dir, path), "contents")
			}
			for _, name := range []string{"user.a=b", "user.c", "user.="} {
				must(t, unix.Setxattr(filepath.Join(dir, path), name, []byte("v=w"), 0))
			}
		}
		must(t, os.Chown(filepath.Join(dir, "tree"), int(alice.UID), int(alice.GID)))
		var packed bytes.Buffer
		must(t, v.Pack(&packed, ""))
		must(t, v.Unpack("copy", &packed))
		for _, path := range []string{"copy/tree", "copy/tree/f"} {
			buf := make([]byte, 100)
			n, err := unix.Listxattr(filepath.Join(dir, path), buf)
			must(t, err)
			if got := string(buf[:n]); got != "user.c\x00" {
				t.Errorf("%s has the attributes %q", path, got)
			}
		}
	})
}

// TestPackForOthers reads the archive with GNU tar.
func TestPackForOthers(t *testing.T) {
	dir := userDir(t)
	makeTree(t, filepath.Join(dir, "tree"), alice, true)
	v := as(User{}, dir, false)
	v.Names = countingNames{map[uint32]int{}}
	archive, err := os.Create(filepath.Join(dir, "tar"))
	must(t, err)
	must(t, v.Pack(archive, "tree"))
	must(t, archive.Close())
	must(t, os.Mkdir(filepath.Join(dir, "out"), 0o755))
	run(t, "tar", "--numeric-owner", "--xattrs", "--xattrs-include=user.*", "-xpf", archive.Name(), "-C", filepath.Join(dir, "out"))
	got, want := describeTree(t, filepath.Join(dir, "out")), describeTree(t, filepath.Join(dir, "tree"))
	delete(got, ".")
	delete(want, ".")
	wantSameTree(t, got, want)

	r, err := os.Open(archive.Name())
	must(t, err)
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if h.Name == "file" && (h.Uname != "alice" || h.Gname != "wonderland" || h.PAXRecords["SCHILY.xattr.user.e2b.k"] != "v") {
			t.Errorf("header %+v", h)
		}
	}
	// And a tree that GNU tar packs.
	run(t, "tar", "--format=gnu", "-cf", archive.Name(), "-C", filepath.Join(dir, "out"), "--exclude=./device", ".")
	r2, err := os.Open(archive.Name())
	must(t, err)
	defer r2.Close()
	must(t, as(alice, dir, true).Unpack("theirs", r2))
	wantContents(t, filepath.Join(dir, "theirs/file"), "contents")
}

func TestPackErrors(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		write(t, filepath.Join(dir, "file"), "")
		for path, want := range map[string]error{"missing": fs.ErrNotExist, "file": ErrNotDirectory} {
			var out bytes.Buffer
			wantErr(t, v.Pack(&out, path), want)
			if out.Len() > 0 {
				t.Errorf("%s: %d bytes before the error", path, out.Len())
			}
		}
		must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
		write(t, filepath.Join(dir, "d/secret"), "s")
		must(t, os.Chmod(filepath.Join(dir, "d/secret"), 0o600))
		err := v.Pack(io.Discard, "d")
		if v.Confined {
			wantErr(t, err, fs.ErrPermission) // rather than an archive without it
		} else {
			must(t, err)
		}
		gone := errors.New("client went away")
		wantErr(t, v.Pack(writerFunc(func([]byte) (int, error) { return 0, gone }), ""), gone)
	})
}

// TestPackFileThatChanges changes the file when its header has gone out.
func TestPackFileThatChanges(t *testing.T) {
	for name, test := range map[string]struct {
		change func(path string) error
		want   error
	}{
		"grows":    {func(path string) error { return os.Truncate(path, 5<<20) }, nil},
		"shrinks":  {func(path string) error { return os.Truncate(path, 10) }, ErrSource},
		"vanishes": {os.Remove, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := userDir(t)
			path := filepath.Join(dir, "f")
			write(t, path, strings.Repeat("x", 1<<20))
			write(t, filepath.Join(dir, "g"), "")
			var out bytes.Buffer
			changed := false
			err := as(alice, dir, false).Pack(writerFunc(func(p []byte) (int, error) {
				if !changed {
					changed = true
					must(t, test.change(path))
				}
				return out.Write(p)
			}), "")
			wantErr(t, err, test.want)
			if err == nil {
				must(t, as(alice, dir, false).Unpack("out", &out))
				wantContents(t, filepath.Join(dir, "out/f"), strings.Repeat("x", 1<<20))
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// archive is a tar archive of the entries; regular ones hold their name.
func archive(t testing.TB, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(w, h.Name)
			must(t, err)
		}
	}
	must(t, w.Close())
	return &buf
}

func file(name string) tar.Header { return tar.Header{Name: name} }
func directory(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}

func symlink(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
}

func hardlink(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
}

// TestUnpackRefuses: nothing outside is made or changed, in either mode.
func TestUnpackRefuses(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		outside := filepath.Join(dir, "outside")
		for name, test := range map[string]struct {
			entries []tar.Header
			want    error
		}{
			"absolute":            {[]tar.Header{file(outside + "/x")}, ErrArchive},
			"dots":                {[]tar.Header{file("../outside/x")}, ErrArchive},
			"dots inside":         {[]tar.Header{file("a/../../outside/x")}, ErrArchive},
			"dots at the end":     {[]tar.Header{directory("a/..")}, ErrArchive},
			"absolute link":       {[]tar.Header{symlink("l", outside), file("l/x")}, ErrArchive},
			"relative link":       {[]tar.Header{symlink("l", "../outside"), file("l/x")}, ErrArchive},
			"link then directory": {[]tar.Header{symlink("l", "../outside"), directory("l"), file("l/x")}, ErrArchive},
			"link to a link":      {[]tar.Header{symlink("l", ".."), symlink("m", "l/outside"), file("m/x")}, ErrArchive},
			"new directory":       {[]tar.Header{symlink("l", "../outside"), directory("l/d")}, ErrArchive},
			"link loop":           {[]tar.Header{symlink("l", "l"), file("l/x")}, ErrArchive},
			"magic link":          {[]tar.Header{symlink("l", "/proc/self/cwd"), file("l/x")}, ErrArchive},
			"hard link outside":   {[]tar.Header{hardlink("h", "../outside/old")}, ErrArchive},
			"absolute hard link":  {[]tar.Header{hardlink("h", outside+"/old")}, ErrArchive},
			"hard link through":   {[]tar.Header{symlink("l", "../outside"), hardlink("h", "l/old")}, ErrArchive},
			"missing hard link":   {[]tar.Header{hardlink("h", "nowhere")}, ErrArchive},
			"through a file":      {[]tar.Header{file("f"), file("f/x")}, ErrNotDirectory},
			"directory on file":   {[]tar.Header{file("f"), directory("f")}, ErrNotDirectory},
			"file on directory":   {[]tar.Header{directory("d"), file("d")}, ErrIsDirectory},
			"character device":    {[]tar.Header{{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, ErrArchive},
			"block device":        {[]tar.Header{{Name: "b", Typeflag: tar.TypeBlock, Devmajor: 7}}, ErrArchive},
			"long component":      {[]tar.Header{file(strings.Repeat("n", 256))}, ErrInvalid},
		} {
			t.Run(name, func(t *testing.T) {
				must(t, os.MkdirAll(outside, 0o777))
				must(t, os.Chmod(outside, 0o777))
				write(t, filepath.Join(outside, "old"), "old")
				wantErr(t, v.Unpack("target", archive(t, test.entries...)), test.want)
				wantNames(t, outside, "old")
				wantContents(t, filepath.Join(outside, "old"), "old")
				if st := lstat(t, outside); st.Mode&0o7777 != 0o777 || st.Uid != 0 {
					t.Errorf("outside has mode %o of %d", st.Mode, st.Uid)
				}
				must(t, v.Remove("target"))
			})
		}
		wantErr(t, v.Unpack("outside/old", archive(t, file("f"))), ErrNotDirectory)
	})
}

func TestUnpackReplacesAndMerges(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "precious"), []byte("p"), 0o666))
		_, err := v.MakeDir("target/kept")
		must(t, err)
		_, err = upload(v, "target/kept/mine", "mine")
		must(t, err)
		_, err = upload(v, "target/file", "old")
		must(t, err)
		must(t, os.Chmod(filepath.Join(dir, "target/kept"), 0o700))
		must(t, os.Symlink("../precious", filepath.Join(dir, "target/link")))
		must(t, os.Symlink("kept", filepath.Join(dir, "target/inner")))
		when := time.Unix(12345, 0)
		must(t, v.Unpack("target", archive(t,
			tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o777},
			file("./file"), file("link"), directory("kept/"), file("inner/new"), file("deep/er/f"), file("twice"), file("twice"),
			tar.Header{Name: "locked/", Typeflag: tar.TypeDir, Mode: 0o500, ModTime: when}, file("locked/f"),
			hardlink("linked", "inner/new"), symlink("out", "/etc"),
			tar.Header{Name: "tool", Mode: 0o6755},
		)))
		wantContents(t, filepath.Join(dir, "precious"), "p")
		for path, want := range map[string]string{
			"file": "./file", "link": "link", "kept/mine": "mine", "kept/new": "inner/new", "deep/er/f": "deep/er/f",
			"locked/f": "locked/f", "linked": "inner/new", "twice": "twice",
		} {
			path = filepath.Join(dir, "target", path)
			wantContents(t, path, want)
			wantOwner(t, path, alice)
		}
		for path, mode := range map[string]uint32{"kept": 0o700, "locked": 0o500, "deep/er": 0o755, "tool": 0o755, ".": 0o755} {
			if st := lstat(t, filepath.Join(dir, "target", path)); st.Mode&0o7777 != mode {
				t.Errorf("%s has mode %o, want %o", path, st.Mode, mode)
			}
		}
		if st := lstat(t, filepath.Join(dir, "target/locked")); st.Mtim.Sec != when.Unix() {
			t.Errorf("locked was changed at %d", st.Mtim.Sec)
		}
	})
}

// TestUnpackLargeHeaders: what an archive says of its directories, a megabyte
// each if it likes, is not kept until the end.
func TestUnpackLargeHeaders(t *testing.T) {
	const entries, size = 100, 512 << 10
	dir := userDir(t)
	v := as(alice, dir, false)
	r, w := io.Pipe()
	var before, kept runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	written := make(chan error, 1)
	go func() {
		archive := tar.NewWriter(w)
		junk := strings.Repeat("x", size)
		var err error
		for i := 0; i < entries && err == nil; i++ {
			err = archive.WriteHeader(&tar.Header{
				Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", i), Mode: 0o750, Format: tar.FormatPAX,
				PAXRecords: map[string]string{"TEST.junk": junk, paxXattr + "user.k": "v"},
			})
		}
		runtime.GC()
		runtime.ReadMemStats(&kept)
		written <- errors.Join(err, archive.Close(), w.Close())
	}()
	must(t, v.Unpack("out", r))
	must(t, <-written)
	if more := int64(kept.HeapAlloc) - int64(before.HeapAlloc); more > entries*size/4 {
		t.Errorf("%d bytes are held", more)
	}
	e, err := v.Stat("out/d7")
	must(t, err)
	var value [8]byte
	n, err := unix.Getxattr(dir+"/out/d7", "user.k", value[:])
	if err != nil || string(value[:n]) != "v" || e.Perm != 0o750 {
		t.Errorf("attribute %q, %v; mode %o", value[:max(n, 0)], err, e.Perm)
	}
}

func TestUnpackAsRootKeepsSetuid(t *testing.T) {
	dir := userDir(t)
	must(t, as(User{}, dir, true).Unpack("", archive(t, tar.Header{Name: "tool", Mode: 0o4755})))
	if st := lstat(t, filepath.Join(dir, "tool")); st.Mode&0o7777 != 0o4755 || st.Uid != 0 {
		t.Errorf("mode %o", st.Mode)
	}
}

func TestUnpackBrokenArchives(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		whole := archive(t, file("a"), file("b")).Bytes()
		gone := errors.New("client went away")
		for name, test := range map[string]struct {
			r    io.Reader
			want error
		}{
			"not an archive": {strings.NewReader(strings.Repeat("not tar ", 200)), ErrArchive},
			"in a header":    {bytes.NewReader(whole[:700+512]), ErrSource},
			"in contents":    {bytes.NewReader(archive(t, file(strings.Repeat("x/", 90)+"x")).Bytes()[:1500]), ErrSource},
			"own error":      {brokenReader(string(whole[:1024]), gone), gone},
			"nothing":        {strings.NewReader(""), nil},
		} {
			t.Run(name, func(t *testing.T) {
				wantErr(t, v.Unpack(fmt.Sprintf("t-%s", name), test.r), test.want)
			})
		}
	})
}

// FuzzUnpack looks for an entry that gets out.
func FuzzUnpack(f *testing.F) {
	f.Add("a/b", "", byte(tar.TypeReg), int64(0o644), "l/x")
	f.Add("l", "..", byte(tar.TypeSymlink), int64(0o777), "l/x")
	f.Add("l", "/", byte(tar.TypeSymlink), int64(0o777), "l/tmp/x")
	f.Add("l", "../outside", byte(tar.TypeLink), int64(0), "../x")
	f.Add("./d/", "", byte(tar.TypeDir), int64(0o7000), "d/./x")
	f.Add("c", "", byte(tar.TypeChar), int64(0), "\xff\n")
	base := f.TempDir()
	must(f, os.Chmod(filepath.Dir(base), 0o755))
	f.Fuzz(func(t *testing.T, name, linkname string, kind byte, mode int64, second string) {
		dir, err := os.MkdirTemp(base, "") //nolint:usetesting // below a directory that the user may enter
		must(t, err)
		defer os.RemoveAll(dir)
		must(t, os.Chmod(dir, 0o777))
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		h := tar.Header{Name: name, Linkname: linkname, Typeflag: kind, Mode: mode & 0o7777}
		if w.WriteHeader(&h) != nil {
			return
		}
		_ = w.WriteHeader(&tar.Header{Name: second, Typeflag: tar.TypeReg, Size: 1, Mode: 0o600})
		_, _ = w.Write([]byte("x"))
		_ = w.Close()
		err = as(alice, dir, true).Unpack("target", &buf)
		if err != nil && !errors.Is(err, ErrArchive) && !errors.Is(err, ErrSource) && !errors.Is(err, ErrInvalid) &&
			!errors.Is(err, ErrIsDirectory) && !errors.Is(err, ErrNotDirectory) && !errors.Is(err, fs.ErrPermission) {
			t.Fatalf("unexpected kind of error: %v", err)
		}
		wantNames(t, dir, "target")
	})
}
