package filesystem

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disks runs f on a small filesystem of every kind, in both modes.
func disks(t *testing.T, f func(t *testing.T, v *View, dir string)) {
	const size = 4 << 20
	for name, disk := range map[string]func(t *testing.T) string{
		"tmpfs": func(t *testing.T) string { return mount(t, "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), "none") },
		"ext4":  func(t *testing.T) string { return ext4(t, size, nil, "") },
		"overlay": func(t *testing.T) string {
			base := mount(t, "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), "none")
			for _, d := range []string{"lower", "upper", "work"} {
				must(t, os.Mkdir(filepath.Join(base, d), 0o755))
			}
			return mount(t, "-t", "overlay", "-o",
				fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base), "none")
		},
	} {
		for _, confined := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/confined=%v", name, confined), func(t *testing.T) {
				dir := disk(t)
				f(t, as(alice, dir, confined), dir)
			})
		}
	}
}

// TestFullDisk: a size that is known and does not fit changes nothing at all.
func TestFullDisk(t *testing.T) {
	disks(t, func(t *testing.T, v *View, dir string) {
		big := random(8 << 20)
		half := bytes.Repeat([]byte("h"), 2<<20)
		_, err := v.Write("old", bytes.NewReader(half), Upload{Size: int64(len(half)), Metadata: Metadata{"k": "v"}})
		must(t, err)
		before := lstat(t, filepath.Join(dir, "old"))
		for _, atomic := range []bool{false, true} {
			for _, path := range []string{"old", "a/b/new"} {
				_, err := v.Write(path, bytes.NewReader(big), Upload{Size: int64(len(big)), Atomic: atomic})
				wantErr(t, err, ErrNoSpace)
			}
		}
		_, err = v.Resume("old", 1<<20, bytes.NewReader(big), Upload{Size: int64(len(big))})
		wantErr(t, err, ErrNoSpace)
		wantContents(t, filepath.Join(dir, "old"), string(half))
		if after := lstat(t, filepath.Join(dir, "old")); after.Ctim != before.Ctim {
			t.Error("the old file was touched")
		}
		if e, _ := v.Stat("old"); e.Metadata["k"] != "v" {
			t.Errorf("metadata %v", e.Metadata)
		}
		wantNames(t, dir, "old")

		// The blocks of the old contents count where they are given back.
		three := bytes.Repeat([]byte("3"), 3<<20)
		_, err = v.Write("old", bytes.NewReader(three), Upload{Size: int64(len(three)), Atomic: true})
		wantErr(t, err, ErrNoSpace)
		wantContents(t, filepath.Join(dir, "old"), string(half))
		_, err = v.Write("old", bytes.NewReader(three[:9<<18]), Upload{Size: 9 << 18})
		must(t, err)

		// An unknown size is found out on the way; an atomic one leaves no trace.
		_, err = v.Write("old", bytes.NewReader(big), Upload{Size: -1, Atomic: true})
		wantErr(t, err, ErrNoSpace)
		_, err = v.Write("new", bytes.NewReader(big), Upload{Size: -1})
		wantErr(t, err, ErrNoSpace)
		wantNames(t, dir, "new", "old")
		// Now it is full indeed.
		_, err = v.Compose("all", []string{"old", "new"}, nil)
		wantErr(t, err, ErrNoSpace)
		wantNames(t, dir, "new", "old")
		must(t, v.Remove("new"))
		_, err = upload(v, "small", "fits again")
		must(t, err)
	})
}

// TestReservedBlocks: what ext4 keeps for root is out of the user's reach.
func TestReservedBlocks(t *testing.T) {
	dir := ext4(t, 8<<20, []string{"-m", "50"}, "")
	contents := bytes.Repeat([]byte("x"), 5<<20)
	u := Upload{Size: int64(len(contents))}
	_, err := as(alice, dir, true).Write("f", bytes.NewReader(contents), u)
	wantErr(t, err, ErrNoSpace)
	_, err = as(alice, dir, true).Write("f", bytes.NewReader(contents), Upload{Size: -1})
	wantErr(t, err, ErrNoSpace)
	_, err = as(alice, dir, false).Write("f", bytes.NewReader(contents), u)
	must(t, err)
	wantOwner(t, filepath.Join(dir, "f"), alice)
}

func TestFullInodes(t *testing.T) {
	dir := ext4(t, 8<<20, []string{"-N", "32"}, "")
	v := as(alice, dir, false)
	var err error
	for i := 0; err == nil && i < 64; i++ {
		_, err = upload(v, fmt.Sprintf("f%02d", i), "x")
	}
	wantErr(t, err, ErrNoSpace)
	_, err = v.MakeDir("d")
	wantErr(t, err, ErrNoSpace)
	_, err = v.Write("f00", strings.NewReader("y"), Upload{Size: 1, Atomic: true})
	wantErr(t, err, ErrNoSpace)
	_, err = upload(v, "f00", "in place")
	must(t, err)
	wantContents(t, filepath.Join(dir, "f00"), "in place")
}

func TestReadOnlyFilesystem(t *testing.T) {
	dir := ext4(t, 4<<20, nil, "")
	v := as(alice, dir, false)
	_, err := upload(v, "f", "x")
	must(t, err)
	run(t, "mount", "-o", "remount,ro", dir)
	_, statErr := v.Stat("f")
	must(t, statErr)
	_, list := list(v, "", 1)
	must(t, list)
	_, inPlace := upload(v, "f", "y")
	_, atomic := v.Write("f", strings.NewReader("y"), Upload{Size: 1, Atomic: true})
	_, create := upload(v, "new", "y")
	_, mkdir := v.MakeDir("d")
	_, move := v.Move("f", "g")
	for name, err := range map[string]error{
		"in place": inPlace, "atomic": atomic, "new": create, "make": mkdir, "move": move, "remove": v.Remove("f"),
	} {
		if !errors.Is(err, fs.ErrPermission) || !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoXattrs: ramfs keeps none of a user's attributes; uploads succeed all the
// same, and with the same events.
func TestNoXattrs(t *testing.T) {
	for _, confined := range []bool{false, true} {
		dir := mount(t, "-t", "ramfs", "none")
		must(t, os.Chmod(dir, 0o755))
		v := as(alice, dir, confined)
		for _, atomic := range []bool{false, true} {
			w := watch(t, dir)
			e, err := v.Write("f", strings.NewReader("x"), Upload{Size: 1, Atomic: atomic, Metadata: Metadata{"k": "v"}})
			must(t, err)
			if e.Metadata != nil {
				t.Errorf("metadata %v", e.Metadata)
			}
			if got := strings.Join(w.events(), ","); !atomic && got != "CREATE f,CHMOD f,WRITE f" {
				t.Errorf("events %s", got)
			}
		}
		e, err := v.Stat("f")
		must(t, err)
		if e.Metadata != nil {
			t.Errorf("metadata %v", e.Metadata)
		}
	}
}

// TestWriteWhereOwnersCannotChange is what FAT and FUSE mounts say, in the words
// of a thread that may not give files away: the upload succeeds.
func TestWriteWhereOwnersCannotChange(t *testing.T) {
	dir := userDir(t)
	v := as(bob, dir, false)
	must(t, as(alice, dir, true).Do(func() error {
		for range 2 {
			if _, err := upload(v, "f", "x"); err != nil {
				return err
			}
		}
		return nil
	}))
	wantContents(t, filepath.Join(dir, "f"), "x")
	wantOwner(t, filepath.Join(dir, "f"), alice)
}
