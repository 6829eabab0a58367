package api

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// TestArchive sends a tree out and in again, in every form, and compares.
func TestArchive(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		big := noise(150_000)
		for name, contents := range map[string]string{"tree/a": "a", "tree/dir/big": big, "tree/dir/deep/er/f": prose(10_000), "tree/ünï\ncode\xff": "odd"} {
			s.put(name, contents, "X-Metadata-Name", "meta").want(t, 200)
		}
		in := func(name string) string { return filepath.Join(s.home, name) }
		must(t, os.Symlink("dir/big", in("tree/link")))
		must(t, os.Symlink("/nowhere", in("tree/broken")))
		must(t, os.Link(in("tree/a"), in("tree/same")))
		must(t, os.Lchown(in("tree/link"), aliceUID, aliceGID))
		must(t, os.Lchown(in("tree/broken"), aliceUID, aliceGID))
		must(t, os.Chmod(in("tree/a"), 0o751))
		must(t, os.Chmod(in("tree/dir/deep"), 0o500))
		old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
		must(t, os.Chtimes(in("tree/a"), old, old))
		must(t, os.Chtimes(in("tree/dir"), old, old))

		for _, a := range archives {
			r := s.get("tree", "Accept", "text/html, "+a.mediaType+", */*;q=0.1").want(t, 200)
			r.wantHeader(t, "Content-Type", a.mediaType)
			r.wantHeader(t, "Content-Disposition", "attachment; filename=tree"+a.extension)
			r.wantHeader(t, "Vary", "Accept")
			head := s.do("HEAD", s.files("path", "tree"), nil, "Accept", a.mediaType).want(t, 200)
			head.wantHeader(t, "Content-Type", a.mediaType)

			copied := "copy" + a.extension
			answer := s.do("POST", s.files("path", copied), strings.NewReader(r.body), "Content-Type", a.mediaType).want(t, 200)
			if want := fmt.Sprintf(`[{"path":%q,"name":%q,"type":"dir"}]`, in(copied), copied); answer.body != want {
				t.Errorf("answer %s, want %s", answer.body, want)
			}
			want := strings.ReplaceAll(contentsOf(t, in("tree")), in("tree"), in(copied))
			if got := contentsOf(t, in(copied)); got != want {
				t.Errorf("%s: got %s\nwant %s", a.mediaType, got, want)
			}
			for _, name := range []string{"a", "dir"} {
				fi, err := os.Stat(in(copied + "/" + name))
				must(t, err)
				if !fi.ModTime().Equal(old) {
					t.Errorf("%s: %s is of %v", a.mediaType, name, fi.ModTime())
				}
			}
			var one, other unix.Stat_t
			must(t, unix.Stat(in(copied+"/a"), &one))
			must(t, unix.Stat(in(copied+"/same"), &other))
			if one.Ino != other.Ino {
				t.Error("two files of one")
			}
			var value [16]byte
			n, err := unix.Getxattr(in(copied+"/dir/big"), "user.e2b.name", value[:])
			if string(value[:max(n, 0)]) != "meta" {
				t.Errorf("metadata %q, %v", value[:max(n, 0)], err)
			}
		}
		// It may be encoded on the way, too.
		tarball := s.get("tree", "Accept", "application/x-tar").want(t, 200)
		s.do("POST", s.files("path", "again"), strings.NewReader(zipped(t, tarball.body)),
			"Content-Type", "application/x-tar", "Content-Encoding", "gzip").want(t, 200)
		wantContents(t, in("again/dir/big"), big)
		s.get("tree").want(t, 400)
		s.get("tree", "Accept", "*/*").want(t, 400)
		s.get("missing", "Accept", "application/x-tar").want(t, 404)
		// A file is a file.
		if r := s.get("tree/a", "Accept", "application/x-tar").want(t, 200); r.body != "a" {
			t.Errorf("got %q", r.body)
		}
	})
}

// TestArchiveRefused: nothing escapes the directory, and what is no archive is
// an error.
func TestArchiveRefused(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		must(t, os.Mkdir(filepath.Join(s.home, "box"), 0o755))
		must(t, os.Chown(filepath.Join(s.home, "box"), aliceUID, aliceGID))
		must(t, os.Symlink(s.home, filepath.Join(s.home, "box/up")))
		link := func(name, target string) entry {
			return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
		}
		good := tarred(t, tarFile("f", "x"))
		unpack := func(body string, headers ...string) reply {
			return s.do("POST", s.files("path", "box"), strings.NewReader(body), append([]string{"Content-Type", "application/x-tar"}, headers...)...)
		}
		for name, body := range map[string]string{
			"dots":                tarred(t, tarFile("../escaped", "x")),
			"dots inside":         tarred(t, tarFile("a/../../escaped", "x")),
			"absolute":            tarred(t, tarFile(s.home+"/escaped", "x")),
			"link in the archive": tarred(t, link("out", ".."), tarFile("out/escaped", "x")),
			"absolute link":       tarred(t, link("out", s.home), tarFile("out/escaped", "x")),
			"link that was there": tarred(t, tarFile("up/escaped", "x")),
			"hard link":           tarred(t, entry{Header: tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../escaped"}}),
			"device":              tarred(t, entry{Header: tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}),
			"no archive":          prose(2000),
			"cut off in a header": good[:300],
			"cut off in contents": tarred(t, tarFile("f", noise(1000)))[:1000],
		} {
			if r := unpack(body); r.StatusCode != 400 {
				t.Errorf("%s: %s: %s", name, r.Status, r.body)
			}
		}
		s.put("file", "x").want(t, 200)
		for name, r := range map[string]reply{
			"no gzip":        s.do("POST", s.files("path", "box"), strings.NewReader(good), "Content-Type", "application/gzip"),
			"cut off gzip":   s.do("POST", s.files("path", "box"), strings.NewReader(zipped(t, good)[:60]), "Content-Type", "application/gzip"),
			"no zstd":        s.do("POST", s.files("path", "box"), strings.NewReader(good), "Content-Type", "application/zstd"),
			"no path":        s.do("POST", s.files(), strings.NewReader(good), "Content-Type", "application/x-tar"),
			"atomic":         s.do("POST", s.files("path", "box", "atomic", "true"), strings.NewReader(good), "Content-Type", "application/x-tar"),
			"metadata":       unpack(good, "X-Metadata-K", "v"),
			"digest":         unpack(good, "Content-Digest", digestOf(good)),
			"onto a file":    s.do("POST", s.files("path", "file"), strings.NewReader(good), "Content-Type", "application/x-tar"),
			"huge zstd":      s.do("POST", s.files("path", "box"), bytes.NewReader(longWindow(t)), "Content-Type", "application/zstd"),
			"corrupt at end": s.do("POST", s.files("path", "box"), strings.NewReader(flipLast(zipped(t, good))), "Content-Type", "application/gzip"),
		} {
			if r.StatusCode != 400 {
				t.Errorf("%s: %s: %s", name, r.Status, r.body)
			}
		}
		if _, err := os.Lstat(filepath.Join(s.home, "escaped")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("an entry escaped: %v", err)
		}
	})
}

// longWindow is zstd that takes 16 MiB to be decompressed.
func longWindow(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(16<<20), zstd.WithSingleSegment(false))
	must(t, err)
	_, err = io.Copy(z, io.LimitReader(zeros{}, 17<<20))
	must(t, err)
	must(t, z.Close())
	return b.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// flipLast spoils the length at the end of gzip.
func flipLast(s string) string {
	return s[:len(s)-1] + string([]byte{s[len(s)-1] ^ 1})
}

// TestArchiveFails: an archive that cannot be made to its end is cut off.
func TestArchiveFails(t *testing.T) {
	for _, form := range []string{"application/x-tar", "application/gzip"} {
		s := newSite(t, homeDir(t), true)
		must(t, os.Mkdir(filepath.Join(s.home, "tree"), 0o755))
		writeFile(t, filepath.Join(s.home, "tree/1"), noise(1<<20))
		writeFile(t, filepath.Join(s.home, "tree/2"), "root's")
		must(t, os.Chmod(filepath.Join(s.home, "tree/2"), 0o600))
		if r, err := s.try("GET", s.files("path", "tree"), nil, "Accept", form); err == nil {
			t.Errorf("%s: %s, %d bytes look whole", form, r.Status, len(r.body))
		}
		if log := s.log.String(); !strings.Contains(log, "permission denied") {
			t.Errorf("log: %s", log)
		}
	}
}
