package api

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

func TestDownload(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		for _, size := range []int{0, 1, 1000, blockSize - 1, blockSize, blockSize + 1, 3<<20 + 7} {
			contents := noise(size)
			path := filepath.Join(s.home, "f.txt")
			writeFile(t, path, contents)
			fi, err := os.Stat(path)
			must(t, err)
			for _, method := range []string{"GET", "HEAD"} {
				r := s.do(method, s.files("path", "f.txt"), nil).want(t, 200)
				r.wantHeader(t, "Content-Type", "text/plain; charset=utf-8")
				r.wantHeader(t, "Content-Disposition", "inline; filename=f.txt")
				r.wantHeader(t, "Vary", "Accept-Encoding")
				r.wantHeader(t, "Accept-Ranges", "bytes")
				r.wantHeader(t, "Content-Encoding", "")
				r.wantHeader(t, "Content-Length", fmt.Sprint(size))
				r.wantHeader(t, "Last-Modified", fi.ModTime().UTC().Format(http.TimeFormat))
				if tag := r.Header.Get("Etag"); !strings.HasPrefix(tag, `"`) {
					t.Errorf("ETag %s", tag)
				}
				if method == "GET" && r.body != contents || method == "HEAD" && r.body != "" {
					t.Errorf("%s: got %d bytes of %d", method, len(r.body), size)
				}
			}
		}
	})
}

// TestDownloadRefused: what is no regular file is refused at once and unopened,
// however it is named.
func TestDownloadRefused(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		in := func(name string) string { return filepath.Join(s.home, name) }
		must(t, os.Mkdir(in("dir"), 0o755))
		must(t, unix.Mkfifo(in("fifo"), 0o666))
		must(t, os.Symlink("fifo", in("to-fifo")))
		must(t, unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(t, unix.Mknod(in("tape"), unix.S_IFBLK|0o666, int(unix.Mkdev(240, 77)))) // there is no driver
		must(t, os.Symlink("loop2", in("loop1")))
		must(t, os.Symlink("loop1", in("loop2")))
		must(t, os.Symlink("gone", in("broken")))
		writeFile(t, in("file"), "x")
		l, err := net.Listen("unix", in("socket"))
		must(t, err)
		defer l.Close()
		for _, row := range []struct {
			query  []string
			status int
		}{
			{[]string{"path", "missing"}, 404},
			{[]string{"path", "broken"}, 404},
			{[]string{"path", "dir/missing"}, 404},
			{[]string{"path", "dir"}, 400},
			{[]string{"path", ""}, 400},
			{nil, 400},
			{[]string{"path", "/"}, 400},
			{[]string{"path", "fifo"}, 400},
			{[]string{"path", "to-fifo"}, 400},
			{[]string{"path", "null"}, 400},
			{[]string{"path", "tape"}, 400},
			{[]string{"path", "socket"}, 400},
			{[]string{"path", "loop1"}, 400},
			{[]string{"path", "file/x"}, 400},
			{[]string{"path", "~bob/x"}, 400},
			{[]string{"path", "a\x00b"}, 400},
			{[]string{"path", strings.Repeat("n", 256)}, 400},
			{[]string{"path", "/" + strings.Repeat("p/", 2100)}, 400},
			{[]string{"path", "file", "username", "mallory"}, 401},
		} {
			for _, method := range []string{"GET", "HEAD"} {
				s.do(method, s.files(row.query...), nil).want(t, row.status)
			}
		}
		// Had the FIFO been opened, a writer would not block.
		if fd, err := syscall.Open(in("fifo"), syscall.O_WRONLY|syscall.O_NONBLOCK, 0); !errors.Is(err, unix.ENXIO) {
			t.Errorf("open the FIFO: %d, %v", fd, err)
		}
	})
}

// TestOddNames downloads and uploads names that are not UTF-8, hold newlines
// and quotes, and paths as long as they can be.
func TestOddNames(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		long := strings.Repeat("d", 250)
		for i := 0; len(s.home)+len(long) < 3840; i++ {
			long += "/" + strings.Repeat("e", 250)
		}
		long += "/" + strings.Repeat("f", 4095-len(s.home)-len("/")-len(long)-len("/"))
		must(t, unix.Chdir(s.home)) // to reach it at all
		for _, name := range []string{"plain", "two words", "new\nline", "quo\"te", `back\slash`, "ünïcode.txt", "\xff\xfe", "%41", "a;b=c", long} {
			contents := noise(100)
			s.put(name, contents).want(t, 200)
			r := s.get(name).want(t, 200)
			if r.body != contents {
				t.Errorf("%q: other contents", name)
			}
			_, p, err := mime.ParseMediaType(r.Header.Get("Content-Disposition"))
			want := strings.ToValidUTF8(filepath.Base(name), "\uFFFD")
			if err != nil || p["filename"] != want {
				t.Errorf("%q: disposition %q: %q, %v", name, r.Header.Get("Content-Disposition"), p["filename"], err)
			}
			if name != long {
				wantContents(t, filepath.Join(s.home, name), contents)
			}
		}
		s.get(long+"x").want(t, 400)
		s.put(long+"x", "").want(t, 400)
	})
}

func TestRanges(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		contents := noise(200_000)
		writeFile(t, filepath.Join(s.home, "f"), contents)
		whole := s.get("f").want(t, 200)
		tag, date := whole.Header.Get("Etag"), whole.Header.Get("Last-Modified")
		const other = `"other"`
		past := time.Unix(1, 0).UTC().Format(http.TimeFormat)
		for _, row := range []struct {
			headers []string
			status  int
			body    string
		}{
			{[]string{"Range", "bytes=0-0"}, 206, contents[:1]},
			{[]string{"Range", "bytes=100-199"}, 206, contents[100:200]},
			{[]string{"Range", "bytes=150000-"}, 206, contents[150_000:]},
			{[]string{"Range", "bytes=-10"}, 206, contents[len(contents)-10:]},
			{[]string{"Range", "bytes=199999-999999999999999999"}, 206, contents[199_999:]},
			{[]string{"Range", "bytes=200000-"}, 416, ""},
			{[]string{"Range", "bytes=5-4"}, 416, ""},
			{[]string{"Range", "bytes=x"}, 416, ""},
			{[]string{"Range", "bytes=10-19", "If-Range", tag}, 206, contents[10:20]},
			{[]string{"Range", "bytes=10-19", "If-Range", date}, 206, contents[10:20]},
			{[]string{"Range", "bytes=10-19", "If-Range", other}, 200, contents},
			{[]string{"Range", "bytes=10-19", "If-Range", past}, 200, contents},
			{[]string{"If-Range", tag}, 200, contents},
			{[]string{"If-None-Match", tag}, 304, ""},
			{[]string{"If-None-Match", "W/" + tag}, 304, ""},
			{[]string{"If-None-Match", other}, 200, contents},
			{[]string{"If-None-Match", other + ", " + tag}, 304, ""},
			{[]string{"If-Modified-Since", date}, 304, ""},
			{[]string{"If-Modified-Since", past}, 200, contents},
			{[]string{"If-Match", tag}, 200, contents},
			{[]string{"If-Match", other}, 412, ""},
			{[]string{"If-Unmodified-Since", date}, 200, contents},
			{[]string{"If-Unmodified-Since", past}, 412, ""},
			{[]string{"If-Match", tag, "Range", "bytes=1-2"}, 206, contents[1:3]},
		} {
			// The client would like gzip, but these are about the bytes of the file.
			r := s.get("f", append(row.headers, "Accept-Encoding", "gzip, zstd")...).want(t, row.status)
			if row.status < 300 && r.body != row.body {
				t.Errorf("%q: %d bytes, want %d", row.headers, len(r.body), len(row.body))
			}
			r.wantHeader(t, "Content-Encoding", "")
			r.wantHeader(t, "Vary", "Accept-Encoding")
			if row.status == 206 || row.status == 304 {
				r.wantHeader(t, "Etag", tag)
			}
			if row.status == 416 && !strings.HasPrefix(r.Header.Get("Content-Range"), "bytes */") && row.headers[1] == "bytes=200000-" {
				t.Errorf("Content-Range %q", r.Header.Get("Content-Range"))
			}
			s.get("f", append(row.headers, "Accept-Encoding", "gzip, identity;q=0")...).want(t, 406)
		}
		// An error has a body even where the file's type is that of an RPC.
		writeFile(t, filepath.Join(s.home, "f.json"), "{}")
		s.get("f.json", "If-Match", other).want(t, 412).wantHeader(t, "Content-Disposition", "")
		s.get("f.json", "Range", "bytes=2-").want(t, 416).wantHeader(t, "Content-Disposition", "")
		r := s.do("HEAD", s.files("path", "f"), nil, "Range", "bytes=5-9").want(t, 206)
		r.wantHeader(t, "Content-Range", "bytes 5-9/200000")
	})
}

func TestManyRanges(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		contents := noise(100_000)
		writeFile(t, filepath.Join(s.home, "f.png"), contents)
		r := s.get("f.png", "Range", "bytes=0-9,50000-69999,-1").want(t, 206)
		kind, p, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || kind != "multipart/byteranges" {
			t.Fatalf("content type %q, %v", kind, err)
		}
		parts := multipart.NewReader(strings.NewReader(r.body), p["boundary"])
		for _, want := range []string{contents[:10], contents[50_000:70_000], contents[99_999:]} {
			part, err := parts.NextPart()
			must(t, err)
			got, err := io.ReadAll(part)
			must(t, err)
			if string(got) != want || part.Header.Get("Content-Type") != "image/png" {
				t.Errorf("part %v: %d bytes, want %d", part.Header, len(got), len(want))
			}
		}
	})
}

// TestRangePast4GiB reads where 32 bits end, of a sparse file.
func TestRangePast4GiB(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		const size, at = 5 << 30, 1<<32 + 1234
		f, err := os.Create(filepath.Join(s.home, "sparse"))
		must(t, err)
		defer f.Close()
		must(t, f.Truncate(size))
		must(t, f.Chown(aliceUID, aliceGID))
		_, err = f.WriteAt([]byte("here"), at)
		must(t, err)
		r := s.get("sparse", "Range", fmt.Sprintf("bytes=%d-%d", at-1, at+4)).want(t, 206)
		if r.body != "\x00here\x00" {
			t.Errorf("got %q", r.body)
		}
		r.wantHeader(t, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", at-1, at+4, int64(size)))
		s.do("HEAD", s.files("path", "sparse"), nil).want(t, 200).wantHeader(t, "Content-Length", fmt.Sprint(int64(size)))
		// And writes there.
		s.do("PATCH", s.files("path", "sparse"), strings.NewReader("there"), "Content-Range", fmt.Sprintf("bytes %d-%d/*", at, at+4)).want(t, 200)
		r = s.get("sparse", "Range", fmt.Sprintf("bytes=%d-%d", at-1, at+5)).want(t, 206)
		if r.body != "\x00there\x00" {
			t.Errorf("got %q", r.body)
		}
	})
}

// decode undoes the content coding of r.
func (r reply) decode(t testing.TB) string {
	t.Helper()
	var src io.Reader = strings.NewReader(r.body)
	switch r.Header.Get("Content-Encoding") {
	case "gzip":
		z, err := gzip.NewReader(src)
		must(t, err)
		src = z
	case "zstd":
		z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1))
		must(t, err)
		defer z.Close()
		src = z
	}
	b, err := io.ReadAll(src)
	must(t, err)
	return string(b)
}

// TestDownloadEncoded: what shrinks is compressed as the client likes it. What
// does not goes as it is, unless the client will not have that (trap 30).
func TestDownloadEncoded(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		files := map[string]string{
			"empty": "", "tiny": "x", "small": prose(2000), "block": prose(blockSize), "large": prose(300_000),
			"noise": noise(5000), "much-noise": noise(300_000),
			"mixed": noise(100_000) + prose(200_000),
		}
		for name, contents := range files {
			writeFile(t, filepath.Join(s.home, name), contents)
		}
		for _, row := range []struct {
			accept string
			coding string // of what shrinks
			must   bool   // of all, whether it shrinks or not
		}{
			{"gzip", "gzip", false},
			{"zstd", "zstd", false},
			{"gzip, deflate, br, zstd", "zstd", false},
			{"gzip, zstd;q=0.9", "gzip", false},
			{"identity;q=0.5, gzip;q=0.4", "", false},
			{"gzip, identity;q=0", "gzip", true},
			{"zstd, *;q=0", "zstd", true},
			{"*", "", false},
			{"", "", false},
		} {
			for name, contents := range files {
				r := s.get(name, "Accept-Encoding", row.accept).want(t, 200)
				want := row.coding
				if strings.Contains("empty tiny noise much-noise", name) && !row.must {
					want = ""
				}
				r.wantHeader(t, "Content-Encoding", want)
				r.wantHeader(t, "Vary", "Accept-Encoding")
				if r.decode(t) != contents {
					t.Errorf("%s as %q: other contents", name, row.accept)
				}
				weak := strings.HasPrefix(r.Header.Get("Etag"), "W/")
				if weak != (want != "") {
					t.Errorf("%s as %q: ETag %s", name, row.accept, r.Header.Get("Etag"))
				}
				if want != "" && name != "mixed" && !row.must && len(r.body) > len(contents)/4 {
					t.Errorf("%s as %q: %d of %d bytes", name, row.accept, len(r.body), len(contents))
				}
				head := s.do("HEAD", s.files("path", name), nil, "Accept-Encoding", row.accept).want(t, 200)
				head.wantHeader(t, "Content-Encoding", want)
				head.wantHeader(t, "Etag", r.Header.Get("Etag"))
			}
		}
		for _, accept := range []string{"br, *;q=0", "identity;q=0", "*;q=0", "gzip;q=0, zstd;q=0, identity;q=0.000"} {
			s.get("large", "Accept-Encoding", accept).want(t, 406).wantHeader(t, "Vary", "Accept-Encoding")
		}
		// A compressed copy can be checked for news.
		r := s.get("large", "Accept-Encoding", "gzip")
		s.get("large", "Accept-Encoding", "gzip", "If-None-Match", r.Header.Get("Etag")).want(t, 304)
	})
}

// TestManyEncoders: when many clients are being compressed for, the next large
// file goes as it is, unless its client will not have that.
func TestManyEncoders(t *testing.T) {
	leaktest.Check(t)
	s := newSite(t, homeDir(t), false)
	writeFile(t, filepath.Join(s.home, "f"), prose(200_000))
	held := make([]*encoder, maxEncoders)
	for i := range held {
		held[i] = encode(io.Discard, gzipped)
	}
	s.get("f", "Accept-Encoding", "gzip").want(t, 200).wantHeader(t, "Content-Encoding", "")
	s.get("f", "Accept-Encoding", "gzip, *;q=0").want(t, 200).wantHeader(t, "Content-Encoding", "gzip")
	for _, e := range held {
		e.release()
	}
	s.get("f", "Accept-Encoding", "gzip").want(t, 200).wantHeader(t, "Content-Encoding", "gzip")
}

// TestDownloadGenerated: the kernel's files say nothing true of their size.
func TestDownloadGenerated(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		for _, path := range []string{"/proc/version", "/proc/self/limits", "/proc/zoneinfo", "/proc/crypto", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/class/net/lo/address"} {
			want, err := os.ReadFile(path)
			must(t, err)
			for _, accept := range []string{"", "gzip", "zstd, identity;q=0"} {
				r := s.get(path, "Accept-Encoding", accept).want(t, 200)
				got := r.decode(t)
				if same := got == string(want); !same && path != "/proc/zoneinfo" || len(got) < len(want)/2 {
					t.Errorf("%s as %q: %d bytes, want %d", path, accept, len(got), len(want))
				}
				r.wantHeader(t, "Etag", "")
				r.wantHeader(t, "Last-Modified", "")
			}
			s.do("HEAD", s.files("path", path), nil).want(t, 200).wantHeader(t, "Content-Length", "")
			// There is no part of what has no size: the whole is right, too.
			if r := s.get(path, "Range", "bytes=0-3").want(t, 200); len(r.body) < 4 && len(want) > 3 {
				t.Errorf("%s: %q", path, r.body)
			}
		}
	})
}

// TestDownloadEndless: a file that waits for news sends what there is, and its
// reader ends with the client.
func TestDownloadEndless(t *testing.T) {
	// A buffer of its own: the machine's may be switched off, or somebody's.
	tracing := filepath.Join(mounted(t, "-t", "tracefs", "none"), "instances", fmt.Sprintf("envd-test-%d", os.Getpid()))
	must(t, os.Mkdir(tracing, 0o755))
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // the last reader may just be leaving
			if err := os.Remove(tracing); err == nil || time.Now().After(end) {
				must(t, err)
				return
			}
		}
	})
	pipe := filepath.Join(tracing, "trace_pipe")
	mark := func(text string) { writeFile(t, filepath.Join(tracing, "trace_marker"), text) }
	leaktest.Check(t)
	s := newSite(t, tracing, false)
	for _, accept := range []string{"", "gzip, *;q=0"} {
		// It takes one reader at a time, and the last may just be leaving.
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			f, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err == nil {
				must(t, f.Close())
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
		s.do("HEAD", s.files("path", pipe, "username", "root"), nil).want(t, 200) // does not wait
		mark("first")
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.files("path", pipe, "username", "root"), nil)
		must(t, err)
		req.Header.Set("Accept-Encoding", accept)
		res, err := s.http.Do(req)
		must(t, err)
		if res.StatusCode != 200 {
			b, _ := io.ReadAll(res.Body)
			t.Fatalf("%s: %s, log %s", res.Status, b, s.log)
		}
		body := io.Reader(res.Body)
		if accept != "" {
			body, err = gzip.NewReader(body)
			must(t, err)
		}
		lines := bufio.NewScanner(body)
		for _, want := range []string{"first", "second", "third"} {
			if want != "first" {
				mark(want)
			}
			for !strings.HasSuffix(lines.Text(), "tracing_mark_write: "+want) {
				if !lines.Scan() {
					t.Fatalf("the file ended before %q: %v", want, lines.Err())
				}
			}
		}
		res.Body.Close()
	}
	if log := s.log.String(); log != "" {
		t.Errorf("log: %s", log)
	}
}

// TestDownloadShrinking: a file that gets shorter under way ends in an error,
// not as a short file.
func TestDownloadShrinking(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		path := filepath.Join(s.home, "f")
		for _, accept := range []string{"", "gzip, identity;q=0"} {
			const size = 24 << 20 // more than a connection holds
			writeFile(t, path, "")
			must(t, os.Truncate(path, size))
			if accept != "" {
				writeFile(t, path, noise(size))
			}
			req, err := http.NewRequest("GET", s.files("path", "f"), nil)
			must(t, err)
			req.Header.Set("Accept-Encoding", accept)
			res, err := s.http.Do(req)
			must(t, err)
			must(t, os.Truncate(path, 100))
			n, err := io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if err == nil {
				t.Errorf("as %q: %d bytes look whole", accept, n)
			}
		}
		if log := s.log.String(); strings.Count(log, "got shorter while it was read") != 2 {
			t.Errorf("log: %s", log)
		}
		// Gone is not short: what is open stays.
		writeFile(t, path, prose(16<<20))
		res, err := s.http.Get(s.files("path", "f"))
		must(t, err)
		defer res.Body.Close()
		must(t, os.Remove(path))
		if n, err := io.Copy(io.Discard, res.Body); n != 16<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

// TestDownloadAbandoned: a client that goes away in the middle leaves nothing,
// not even in the log.
func TestDownloadAbandoned(t *testing.T) {
	home := homeDir(t)
	writeFile(t, filepath.Join(home, "f"), noise(24<<20))
	leaktest.Check(t)
	s := newSite(t, home, false)
	for _, accept := range []string{"identity", "gzip, *;q=0", "zstd, *;q=0"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
		must(t, err)
		_, err = fmt.Fprintf(conn, "GET /files?path=f HTTP/1.1\r\nHost: x\r\nAccept-Encoding: %s\r\n\r\n", accept)
		must(t, err)
		var some [1000]byte
		_, err = io.ReadFull(conn, some[:])
		must(t, err)
		if !bytes.HasPrefix(some[:], []byte("HTTP/1.1 200 OK\r\n")) {
			t.Errorf("got %q", some)
		}
		must(t, conn.(*net.TCPConn).SetLinger(0))
		must(t, conn.Close())
	}
	s.http.CloseIdleConnections()
	if log := s.log.String(); log != "" {
		t.Errorf("log: %s", log)
	}
}
