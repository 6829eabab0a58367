package api

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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// entry is one entry of an archive.
type entry struct {
	tar.Header
	contents string
}

func tarFile(name, contents string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(contents))}, contents}
}

// tarred makes an archive.
func tarred(t testing.TB, entries ...entry) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		must(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.contents)
		must(t, err)
	}
	must(t, w.Close())
	return b.String()
}

// surroundings makes a world around alice, who owns dir/home: what she may read
// only, what is root's alone, and what her second group may write.
func surroundings(t *testing.T) (dir string) {
	t.Helper()
	dir = homeDir(t)
	must(t, os.Chown(dir, 0, 0))
	for _, d := range []struct {
		name     string
		mode     fs.FileMode
		uid, gid int
	}{
		{"home", 0o755, aliceUID, aliceGID},
		{"public", 0o755, 0, 0},
		{"private", 0o700, 0, 0},
		{"shared", 0o770, 0, aliceGroup},
	} {
		path := filepath.Join(dir, d.name)
		must(t, os.Mkdir(path, 0o700))
		writeFile(t, path+"/f", "old")
		must(t, os.Chown(path+"/f", d.uid, d.gid))
		must(t, os.Chmod(path+"/f", d.mode&0o666))
		must(t, os.Chown(path, d.uid, d.gid))
		must(t, os.Chmod(path, d.mode))
	}
	must(t, os.Symlink("../private", dir+"/home/way-out"))
	return dir
}

// contentsOf is what is in dir: names, owners, modes and contents.
func contentsOf(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d", path, st.Mode, st.Uid, st.Gid)
		if d.Type().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", text)
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

// TestFilesAccess is the table of what each mode allows: root's reach all of
// it, the user's own what the table says; the rest is 403 and changes nothing.
func TestFilesAccess(t *testing.T) {
	ops := []struct {
		name string
		do   func(s *site, dir string) reply
	}{
		{"read", func(s *site, d string) reply { return s.get(d + "/f") }},
		{"range", func(s *site, d string) reply { return s.get(d+"/f", "Range", "bytes=0-1") }},
		{"pack", func(s *site, d string) reply { return s.get(d, "Accept", "application/x-tar") }},
		{"write", func(s *site, d string) reply { return s.put(d+"/f", "new") }},
		{"patch", func(s *site, d string) reply {
			return s.do("PATCH", s.files("path", d+"/f"), strings.NewReader("x"), "Content-Range", "bytes 1-1/*")
		}},
		{"create", func(s *site, d string) reply { return s.put(d+"/new/f", "new") }},
		{"create by form", func(s *site, d string) reply { return s.postForm(nil, fileAs(d+"/new", "new")) }},
		{"create with metadata", func(s *site, d string) reply { return s.put(d+"/new", "new", "X-Metadata-K", "v") }},
		{"replace atomically", func(s *site, d string) reply {
			return s.do("POST", s.files("path", d+"/f", "atomic", "true"), strings.NewReader("x"), "Content-Type", rawType)
		}},
		{"unpack", func(s *site, d string) reply {
			return s.do("POST", s.files("path", d), strings.NewReader(tarred(s.t, tarFile("a/f", "x"))), "Content-Type", "application/x-tar")
		}},
		{"compose from", func(s *site, d string) reply {
			return s.do("POST", s.base+"/files/compose", strings.NewReader(fmt.Sprintf(`{"source_paths":[%q],"destination":"~/all"}`, d+"/f")))
		}},
		{"compose to", func(s *site, d string) reply {
			return s.do("POST", s.base+"/files/compose", strings.NewReader(fmt.Sprintf(`{"source_paths":["~/mine"],"destination":%q}`, d+"/new")))
		}},
	}
	const reads = 3 // the first of ops
	allowed := map[string]func(op int) bool{
		"home": func(int) bool { return true },
		// An atomic upload keeps the owner, who here is root.
		"shared":       func(op int) bool { return ops[op].name != "replace atomically" },
		"public":       func(op int) bool { return op < reads },
		"private":      func(int) bool { return false },
		"home/way-out": func(int) bool { return false },
	}
	for _, confined := range []bool{false, true} {
		for place, may := range allowed {
			for i, op := range ops {
				t.Run(fmt.Sprintf("confined=%v/%s/%s", confined, place, op.name), func(t *testing.T) {
					dir := surroundings(t)
					leaktest.Check(t)
					s := newSite(t, dir+"/home", confined)
					s.put("mine", "mine").want(t, 200)
					before := contentsOf(t, filepath.Join(dir, place)+"/")
					r := op.do(s, filepath.Join(dir, place))
					if may(i) || !confined {
						if r.StatusCode/100 != 2 {
							t.Errorf("%s: %s", r.Status, r.body)
						}
						return
					}
					r.want(t, 403)
					if after := contentsOf(t, filepath.Join(dir, place)+"/"); after != before {
						t.Errorf("was %s\nis %s", before, after)
					}
				})
			}
		}
	}
}

// swap exchanges two names for each other, back and forth, until settle is called.
func swap(a, b string) (settle func()) {
	over := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		}
	})
	return func() {
		close(over)
		swapping.Wait()
	}
}

// TestFilesSwappedLink swaps a directory on the way for a link to a directory of
// root's, back and forth, under running uploads, unpackings, composings,
// patches and downloads of a confined user. None ever reaches through it.
func TestFilesSwappedLink(t *testing.T) {
	dir := surroundings(t)
	home, private := dir+"/home", dir+"/private"
	leaktest.Check(t)
	s := newSite(t, home, true)
	s.put("way/f", "mine").want(t, 200)
	must(t, os.Symlink(private, home+"/other"))
	before := contentsOf(t, private)

	settle := swap(home+"/way", home+"/other")
	archive := tarred(t, tarFile("way/f", "alice"), tarFile("way/g", "alice"),
		entry{Header: tar.Header{Name: "way/h", Typeflag: tar.TypeLink, Linkname: "way/f"}})
	requests := map[string]func(i int) (reply, error){
		"upload": func(i int) (reply, error) {
			return s.try("POST", s.files("path", fmt.Sprintf("way/f%d", i%3)), strings.NewReader("alice"), "Content-Type", rawType)
		},
		"upload into a new directory": func(i int) (reply, error) {
			return s.try("POST", s.files("path", fmt.Sprintf("way/d%d/f", i%50)), strings.NewReader("alice"), "Content-Type", rawType)
		},
		"atomic upload": func(int) (reply, error) {
			return s.try("POST", s.files("path", "way/f", "atomic", "true"), strings.NewReader("alice"), "Content-Type", rawType, "X-Metadata-K", "v")
		},
		"patch": func(int) (reply, error) {
			return s.try("PATCH", s.files("path", "way/f"), strings.NewReader("alice"), "Content-Range", "bytes 0-4/*")
		},
		"unpack": func(int) (reply, error) {
			return s.try("POST", s.files("path", "~"), strings.NewReader(archive), "Content-Type", "application/x-tar")
		},
		"unpack there": func(int) (reply, error) {
			return s.try("POST", s.files("path", "way"), strings.NewReader(archive), "Content-Type", "application/x-tar")
		},
		"compose": func(i int) (reply, error) {
			return s.try("POST", s.base+"/files/compose", strings.NewReader(`{"source_paths":["way/f"],"destination":"way/all"}`))
		},
		"download": func(int) (reply, error) { return s.try("GET", s.files("path", "way/f"), nil) },
		"pack": func(int) (reply, error) {
			return s.try("GET", s.files("path", "way"), nil, "Accept", "application/x-tar")
		},
	}
	var mu sync.Mutex
	outcomes := make(map[int]int) // by status
	var clients sync.WaitGroup
	for name, request := range requests {
		clients.Go(func() {
			for i, end := 0, time.Now().Add(2*time.Second); time.Now().Before(end); i++ {
				r, err := request(i)
				if err != nil {
					// A download that began is cut off.
					if name != "pack" || !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("%s: %v", name, err)
					}
					continue
				}
				// 404, 400 and 409 where the directory changed between two steps.
				switch r.StatusCode {
				case 200, 400, 403, 404, 409:
				default:
					t.Errorf("%s: %s: %s", name, r.Status, r.body)
				}
				if r.StatusCode == 200 && strings.Contains(r.body, "old") {
					t.Errorf("%s: root's file came out", name)
				}
				mu.Lock()
				outcomes[r.StatusCode]++
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	settle()
	if after := contentsOf(t, private); after != before {
		t.Errorf("was %s\nis %s", before, after)
	}
	if outcomes[403] == 0 || outcomes[200] == 0 {
		t.Errorf("no request met the link, or all did: %v", outcomes)
	}
	t.Logf("answers by status: %v", outcomes)
}
