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
	"strings"
	"testing"
)

// layout makes a world around alice, who owns dir/home: what is hers, what she
// may read only, what is root's alone, and what her second group may write.
func layout(t *testing.T) string {
	dir := userDir(t)
	must(t, os.Chown(dir, 0, 0))
	for _, d := range []struct {
		name     string
		mode     fs.FileMode
		uid, gid int
	}{
		{"home", 0o755, int(alice.UID), int(alice.GID)},
		{"public", 0o755, 0, 0},
		{"private", 0o700, 0, 0},
		{"shared", 0o770 | fs.ModeSetgid, 0, 41999},
		{"sticky", 0o777 | fs.ModeSticky, 0, 0},
	} {
		path := filepath.Join(dir, d.name)
		must(t, os.Mkdir(path, 0o700))
		write(t, filepath.Join(path, "f"), "old")
		if d.name != "home" {
			must(t, os.Mkdir(filepath.Join(path, "sub"), 0o755))
		}
		must(t, os.Chown(path, d.uid, d.gid))
		must(t, os.Chmod(path, d.mode))
	}
	must(t, os.Chown(filepath.Join(dir, "home/f"), int(alice.UID), int(alice.GID)))
	must(t, os.Chown(filepath.Join(dir, "shared/f"), 0, 41999))
	must(t, os.Chmod(filepath.Join(dir, "shared/f"), 0o660))
	must(t, os.Symlink("../private", filepath.Join(dir, "home/way-out")))
	must(t, os.Symlink("../private/f", filepath.Join(dir, "home/file-out")))
	return dir
}

// TestAccessThroughProc: what the daemon has open leads a confined user nowhere,
// neither to a file that lies out of reach nor below a directory that does.
func TestAccessThroughProc(t *testing.T) {
	dir := layout(t)
	must(t, os.Chmod(dir+"/private/sub", 0o777))
	must(t, os.Chmod(dir+"/private/f", 0o666))
	must(t, os.WriteFile(dir+"/private/sub/x", nil, 0o666))
	must(t, os.WriteFile(dir+"/home/mine", nil, 0o666))
	file, err := os.Open(dir + "/private/f")
	must(t, err)
	defer file.Close()
	sub, err := os.Open(dir + "/private/sub")
	must(t, err)
	defer sub.Close()
	through := func(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
	v := as(alice, dir+"/home", true)
	must(t, os.Symlink(through(file), dir+"/home/link"))
	for name, do := range map[string]func() error{
		"open":   func() error { _, err := v.Open(through(file)); return err },
		"linked": func() error { _, err := v.Open("link"); return err },
		"list":   func() error { return v.List(through(sub), 1, func(Entry) error { return nil }) },
		"pack":   func() error { return v.Pack(io.Discard, through(sub)) },
		"write":  func() error { _, err := v.Write(through(file), strings.NewReader("x"), Upload{Size: 1}); return err },
		"create": func() error {
			_, err := v.Write(through(sub)+"/new", strings.NewReader("x"), Upload{Size: 1})
			return err
		},
		"replace": func() error {
			_, err := v.Write(through(file), strings.NewReader("x"), Upload{Size: 1, Atomic: true})
			return err
		},
		"compose":  func() error { _, err := v.Compose("all", []string{through(file)}, nil); return err },
		"stat":     func() error { _, err := v.Stat(through(sub) + "/x"); return err },
		"make":     func() error { _, err := v.MakeDir(through(sub) + "/new/dir"); return err },
		"remove":   func() error { return v.Remove(through(sub) + "/x") },
		"move in":  func() error { _, err := v.Move("mine", through(sub)+"/new"); return err },
		"move out": func() error { _, err := v.Move(through(sub)+"/x", "stolen"); return err },
	} {
		if err := do(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantContents(t, dir+"/private/f", "old")
	wantNames(t, dir+"/private/sub", "x")
}

// TestAccess is the table of what each mode allows: root's reach all of it, the
// user's own reach what the table says. Refusals change nothing.
func TestAccess(t *testing.T) {
	const yes, no = true, false
	ops := []struct {
		name string
		do   func(v *View, dir string) error
	}{
		{"stat", func(v *View, d string) error { _, err := v.Stat(d + "/f"); return err }},
		{"list", func(v *View, d string) error { _, err := list(v, d, 2); return err }},
		{"open", func(v *View, d string) error {
			f, err := v.Open(d + "/f")
			if err == nil {
				err = f.Close()
			}
			return err
		}},
		{"pack", func(v *View, d string) error { return v.Pack(io.Discard, d) }},
		{"write", func(v *View, d string) error { _, err := upload(v, d+"/f", "new"); return err }},
		{"resume", func(v *View, d string) error {
			_, err := v.Resume(d+"/f", 1, strings.NewReader("x"), Upload{Size: 1})
			return err
		}},
		{"create", func(v *View, d string) error { _, err := upload(v, d+"/new/f", "new"); return err }},
		{"create with metadata", func(v *View, d string) error {
			_, err := v.Write(d+"/new", strings.NewReader(""), Upload{Metadata: Metadata{"k": "v"}})
			return err
		}},
		{"create atomically", func(v *View, d string) error {
			_, err := v.Write(d+"/new", strings.NewReader(""), Upload{Atomic: true})
			return err
		}},
		{"make directory", func(v *View, d string) error { _, err := v.MakeDir(d + "/new/dir"); return err }},
		{"move away", func(v *View, d string) error { _, err := v.Move(d+"/f", "~/moved"); return err }},
		{"move in", func(v *View, d string) error { _, err := v.Move("~/mine", d+"/new"); return err }},
		{"remove", func(v *View, d string) error { return v.Remove(d + "/f") }},
		{"compose from", func(v *View, d string) error { _, err := v.Compose("~/all", []string{d + "/f"}, nil); return err }},
		{"compose to", func(v *View, d string) error { _, err := v.Compose(d+"/new", []string{"~/mine"}, nil); return err }},
		{"unpack", func(v *View, d string) error {
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			must(t, w.WriteHeader(&tar.Header{Name: "a/f", Mode: 0o644, Typeflag: tar.TypeReg}))
			must(t, w.Close())
			return v.Unpack(d, &buf)
		}},
	}
	//                          stat list open pack write resume create meta atomic mkdir away in remove from to unpack
	allowed := map[string][]bool{
		"home":         {yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes},
		"public":       {yes, yes, yes, yes, no, no, no, no, no, no, no, no, no, no, no, no},
		"private":      {no, no, no, no, no, no, no, no, no, no, no, no, no, no, no, no},
		"home/way-out": {no, no, no, no, no, no, no, no, no, no, no, no, no, no, no, no},
		"shared":       {yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes, yes},
		"sticky":       {yes, yes, yes, yes, no, no, yes, yes, yes, yes, no, yes, no, no, yes, yes},
	}
	for place, table := range allowed {
		for i, op := range ops {
			for _, confined := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/confined=%v", place, op.name, confined), func(t *testing.T) {
					dir := layout(t)
					v := as(alice, filepath.Join(dir, "home"), confined)
					_, err := upload(v, "mine", "mine")
					must(t, err)
					before := describeTree(t, filepath.Join(dir, place))
					err = op.do(v, filepath.Join(dir, place))
					want := table[i] || !confined
					// Sources were copied, but cannot be removed.
					if place == "public" && op.name == "compose from" && confined {
						must(t, os.RemoveAll(filepath.Join(dir, "home/all")))
					}
					if want {
						must(t, err)
						return
					}
					wantErr(t, err, fs.ErrPermission)
					wantSameTree(t, describeTree(t, filepath.Join(dir, place)), before)
				})
			}
		}
	}
}

// TestConfinedGroups: what alice makes in a set-group-ID directory has its group.
func TestConfinedGroups(t *testing.T) {
	dir := layout(t)
	v := as(alice, filepath.Join(dir, "home"), true)
	for _, m := range []Metadata{nil, {"k": "v"}} {
		path := filepath.Join(dir, "shared", fmt.Sprint("new", len(m)))
		_, err := v.Write(path, strings.NewReader("x"), Upload{Size: 1, Metadata: m})
		must(t, err)
		wantOwner(t, path, User{UID: alice.UID, GID: 41999})
	}
}

// TestSwappedLink swaps a directory on the way for a link to a directory of
// root's, back and forth, under running operations. In a confined view none of
// them ever reaches through it.
func TestSwappedLink(t *testing.T) {
	dir := layout(t)
	home, private := filepath.Join(dir, "home"), filepath.Join(dir, "private")
	v := as(alice, home, true)
	_, err := v.MakeDir("way")
	must(t, err)
	must(t, os.Symlink(private, filepath.Join(home, "other")))
	before := describeTree(t, private)
	stop := swap(filepath.Join(home, "way"), filepath.Join(home, "other"))

	refused := 0
	count := func(err error) {
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrPermission), errors.Is(err, ErrArchive):
			refused++
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotDirectory), errors.Is(err, fs.ErrExist):
			// The directory changed between two steps.
		default:
			t.Errorf("%v", err)
		}
	}
	var packed bytes.Buffer
	for i := range 400 {
		name := fmt.Sprintf("way/f%d", i%7)
		_, err := upload(v, name, "alice")
		count(err)
		_, err = v.Write(name, strings.NewReader("alice"), Upload{Size: 5, Atomic: true, Metadata: Metadata{"k": "v"}})
		count(err)
		_, err = v.MakeDir(fmt.Sprintf("way/d%d/e", i))
		count(err)
		_, err = v.Move(name, fmt.Sprintf("way/g%d/h", i))
		count(err)
		count(v.Remove("way/f"))
		count(v.Unpack("~", archive(t, file("way/x"), directory("way/y"), file("way/y/z"), symlink("way/s", "/etc"))))
		if f, err := v.Open("way/f"); err == nil {
			t.Error("root's file was opened")
			must(t, f.Close())
		} else {
			count(err)
		}
		packed.Reset()
		count(v.Pack(&packed, "way"))
		if bytes.Contains(packed.Bytes(), []byte("old")) {
			t.Error("root's file was packed")
		}
	}
	stop()
	wantSameTree(t, describeTree(t, private), before)
	if refused == 0 {
		t.Error("no operation met the link")
	}
	t.Logf("%d refusals", refused)
}

// TestSwappedLinkUnpack is the same for root's reach, where openat2 alone keeps
// an archive inside its directory.
func TestSwappedLinkUnpack(t *testing.T) {
	dir := layout(t)
	home, private := filepath.Join(dir, "home"), filepath.Join(dir, "private")
	v := as(alice, home, false)
	_, err := v.MakeDir("way")
	must(t, err)
	must(t, os.Symlink(private, filepath.Join(home, "other")))
	before := describeTree(t, private)
	stop := swap(filepath.Join(home, "way"), filepath.Join(home, "other"))
	refused := 0
	for range 500 {
		err := v.Unpack("~", archive(t, file("way/f"), directory("way/y"), file("way/y/z"), hardlink("way/h", "way/f")))
		if errors.Is(err, ErrArchive) {
			refused++
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	stop()
	wantSameTree(t, describeTree(t, private), before)
	if refused == 0 {
		t.Error("no entry met the link")
	}
	t.Logf("%d refusals", refused)
}
