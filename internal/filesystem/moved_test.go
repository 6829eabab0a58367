package filesystem

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestWriteAtomicAtOnce: of uploads to one name at once, composed ones among
// them, each that succeeds was there under that name, and leaves no other.
func TestWriteAtomicAtOnce(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		var uploads sync.WaitGroup
		for i := range 4 {
			uploads.Go(func() {
				contents := strings.Repeat(fmt.Sprint(i), 1000)
				for range 300 {
					_, err := v.Write("f", strings.NewReader(contents), Upload{Size: 1000, Atomic: true})
					if i == 0 && err == nil {
						if _, err = upload(v, "part", contents); err == nil {
							_, err = v.Compose("f", []string{"part"}, nil)
						}
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		uploads.Wait()
		wantNames(t, dir, "f")
		b, err := os.ReadFile(filepath.Join(dir, "f"))
		must(t, err)
		if len(b) != 1000 || strings.Trim(string(b), string(b[:1])) != "" {
			t.Errorf("contents %q", b)
		}
	})
}

// TestLinkToWhatIsReplaced: a link's target is there all the time, and is never
// told to be elsewhere.
func TestLinkToWhatIsReplaced(t *testing.T) {
	dir := userDir(t)
	v := as(alice, dir, false)
	path, next := filepath.Join(dir, "f"), filepath.Join(dir, "next")
	write(t, path, "")
	must(t, os.Symlink("f", filepath.Join(dir, "link")))
	stop := harass(func() {
		if f, err := os.Create(next); err == nil {
			f.Close()
		}
		_ = os.Rename(next, path)
	})
	defer stop()
	for range 5000 {
		e, err := v.Stat("link")
		must(t, err)
		if e.SymlinkTarget != path || e.Type != TypeFile {
			t.Fatalf("the link leads to %q, type %v", e.SymlinkTarget, e.Type)
		}
	}
}

// TestNameOfADeletedFile: a name may look like what the kernel calls a file that
// is gone.
func TestNameOfADeletedFile(t *testing.T) {
	modes(t, func(t *testing.T, v *View, dir string) {
		path := filepath.Join(dir, "f (deleted)")
		_, err := upload(v, path, "old")
		must(t, err)
		must(t, os.Symlink("f (deleted)", filepath.Join(dir, "link")))
		_, err = v.Write("link", strings.NewReader("new"), Upload{Size: 3, Atomic: true})
		must(t, err)
		wantContents(t, path, "new")
		e, err := v.Stat("link")
		must(t, err)
		if e.SymlinkTarget != path || e.Type != TypeFile {
			t.Errorf("the link leads to %q, type %v", e.SymlinkTarget, e.Type)
		}
		wantNames(t, dir, "f (deleted)", "link")
	})
}

// TestWriteAtomicElsewhere: the path of a file in another mount namespace leads
// to another file here, which is not replaced in its stead.
func TestWriteAtomicElsewhere(t *testing.T) {
	dir := userDir(t)
	path := filepath.Join(dir, "f")
	write(t, path, "here")
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount -t tmpfs none "$0" && printf there >"$0/f" && echo && read line`, dir)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		in.Close()
		_ = cmd.Wait() // read has met the end
	}()
	_, err = io.ReadFull(out, make([]byte, 1))
	must(t, err)
	there := fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, path)
	v := as(User{}, dir, false)
	_, err = v.Write(there, strings.NewReader("new"), Upload{Size: 3, Atomic: true})
	wantErr(t, err, ErrMoved)
	wantContents(t, there, "there")
	wantContents(t, path, "here")
	wantNames(t, dir, "f")
	_, err = upload(v, there, "in place")
	must(t, err)
	wantContents(t, there, "in place")
}

// TestLinkToADeletedFile: what is open has no name any more, but is there.
func TestLinkToADeletedFile(t *testing.T) {
	dir := userDir(t)
	path := filepath.Join(dir, "f")
	write(t, path, "")
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, os.Remove(path))
	e, err := as(User{}, dir, false).Stat(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()))
	must(t, err)
	if e.SymlinkTarget != path+deletedSuffix || e.Type != TypeFile {
		t.Errorf("the link leads to %q, type %v", e.SymlinkTarget, e.Type)
	}
}
