package api

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// formPart is one part of a multipart upload: its Content-Disposition after
// "form-data; ", more headers, and its contents.
type formPart struct {
	disposition string
	headers     []string
	contents    string
}

func fileAs(filename, contents string) formPart {
	return formPart{disposition: `name="file"; filename="` + filename + `"`, contents: contents}
}

func form(t testing.TB, parts ...formPart) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		h := textproto.MIMEHeader{"Content-Disposition": {"form-data; " + p.disposition}}
		for i := 0; i < len(p.headers); i += 2 {
			h.Set(p.headers[i], p.headers[i+1])
		}
		pw, err := w.CreatePart(h)
		must(t, err)
		_, err = io.WriteString(pw, p.contents)
		must(t, err)
	}
	must(t, w.Close())
	return b.String(), w.FormDataContentType()
}

// postForm uploads parts; query are names and values.
func (s *site) postForm(query []string, parts ...formPart) reply {
	s.t.Helper()
	body, contentType := form(s.t, parts...)
	return s.do("POST", s.files(query...), strings.NewReader(body), "Content-Type", contentType)
}

func zipped(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, s)
	must(t, err)
	must(t, z.Close())
	return b.String()
}

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func TestUploadRaw(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		path := filepath.Join(s.home, "a/b/f")
		for _, size := range []int{0, 1, 5000, 200_001} {
			contents := noise(size)
			for _, headers := range [][]string{
				nil,
				{"X-Metadata-Color", "dark blue", "X-METADATA-b", "2"},
				{"Content-Encoding", "gzip"},
				{"Content-Encoding", "x-gzip"},
				{"Content-Encoding", "identity"},
			} {
				sent := contents
				if strings.HasSuffix(strings.Join(headers, " "), "gzip") {
					sent = zipped(t, contents)
				}
				r := s.put("a/b/f", sent, headers...).want(t, 200)
				want := fmt.Sprintf(`[{"path":%q,"name":"f","type":"file"}]`, path)
				if len(headers) > 2 {
					want = strings.Replace(want, "}]", `,"metadata":{"b":"2","color":"dark blue"}}]`, 1)
				}
				if r.body != want || r.Header.Get("Content-Type") != "application/json" {
					t.Errorf("answer %s, want %s", r.body, want)
				}
				wantContents(t, path, contents)
			}
		}
		wantOwner(t, path, aliceUID, aliceGID)
		wantOwner(t, filepath.Dir(path), aliceUID, aliceGID)
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Mode&0o777 != 0o644 {
			t.Errorf("mode %o", st.Mode)
		}
		// The same file, with its mode.
		must(t, os.Chmod(path, 0o600))
		s.put("a/b/f", "other").want(t, 200)
		var after unix.Stat_t
		must(t, unix.Stat(path, &after))
		if after.Ino != st.Ino || after.Mode&0o777 != 0o600 {
			t.Errorf("inode %d, mode %o", after.Ino, after.Mode)
		}
		// A chunked body has no size.
		r := s.do("POST", s.files("path", "chunked"), io.MultiReader(strings.NewReader("un"), strings.NewReader("known")), "Content-Type", octets)
		r.want(t, 200)
		wantContents(t, filepath.Join(s.home, "chunked"), "unknown")
	})
}

func TestUploadForm(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		big := noise(2<<20 + 3)
		r := s.postForm(nil,
			fileAs("one", "1"),
			formPart{disposition: `name="note"; filename="ignored"`, contents: "x"},
			fileAs("dir/two", ""),
			fileAs(s.home+"/abs", big),
			fileAs("~/home", "\r\n--not the boundary\r\n"),
			formPart{disposition: `name=file; filename=token`, contents: "t"},
			formPart{disposition: `name="file"; filename*=UTF-8''%C3%BC%20x`, contents: "u"},
			formPart{disposition: `name="file"; filename="quoted-printable"`, headers: []string{"Content-Transfer-Encoding", "quoted-printable"}, contents: "=41"},
			fileAs(`quo%22te`, "q"),
			fileAs(`new%0Aline%0D`, "n"),
			fileAs(`quo\"te2`, "q"),
			fileAs("100%41", "p"),
			fileAs("\xff\xfe", "bytes"),
		).want(t, 200)
		var got []struct{ Path, Name, Type string }
		must(t, json.Unmarshal([]byte(r.body), &got))
		var names []string
		for _, e := range got {
			names = append(names, strings.TrimPrefix(e.Path, s.home+"/"))
			if e.Type != "file" || e.Name != filepath.Base(e.Path) {
				t.Errorf("entry %+v", e)
			}
		}
		want := []string{"one", "dir/two", "abs", "home", "token", "ü x", "quoted-printable", `quo"te`, "new\nline\r", `quo"te2`, "100%41", "\uFFFD"}
		if !slices.Equal(names, want) {
			t.Errorf("got %q, want %q", names, want)
		}
		for name, contents := range map[string]string{
			"one": "1", "dir/two": "", "abs": big, "home": "\r\n--not the boundary\r\n", "token": "t", "ü x": "u",
			"quoted-printable": "=41", `quo"te`: "q", "new\nline\r": "n", `quo"te2`: "q", "100%41": "p", "\xff\xfe": "bytes",
		} {
			wantContents(t, filepath.Join(s.home, name), contents)
		}
		wantOwner(t, filepath.Join(s.home, "dir"), aliceUID, aliceGID)

		// The query says more than the filename.
		s.postForm([]string{"path", "x/y"}, fileAs("elsewhere", "here")).want(t, 200)
		wantContents(t, filepath.Join(s.home, "x/y"), "here")
		s.postForm([]string{"path", "blob"}, formPart{disposition: `name="file"`, contents: "without a name"}).want(t, 200)
		wantContents(t, filepath.Join(s.home, "blob"), "without a name")
		// All of it compressed.
		body, contentType := form(t, fileAs("zipped", "z"))
		s.do("POST", s.files(), strings.NewReader(zipped(t, body)), "Content-Type", contentType, "Content-Encoding", "gzip").want(t, 200)
		wantContents(t, filepath.Join(s.home, "zipped"), "z")
		// A user by name.
		s.postForm([]string{"username", "root", "path", "/tmp/../" + s.home + "/roots"}, fileAs("f", "r")).want(t, 200)
		wantOwner(t, filepath.Join(s.home, "roots"), 0, 0)
	})
}

func TestUploadRefused(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		must(t, os.Mkdir(filepath.Join(s.home, "dir"), 0o755))
		must(t, unix.Mkfifo(filepath.Join(s.home, "fifo"), 0o666))
		writeFile(t, filepath.Join(s.home, "file"), "old")
		must(t, os.Chown(filepath.Join(s.home, "file"), aliceUID, aliceGID))
		long := strings.Repeat("k", 247)
		for _, row := range []struct {
			name    string
			query   []string
			body    string
			headers []string
			status  int
		}{
			{"no path", nil, "x", nil, 400},
			{"empty path", []string{"path", ""}, "x", nil, 400},
			{"directory", []string{"path", "dir"}, "x", nil, 400},
			{"FIFO", []string{"path", "fifo"}, "x", nil, 400},
			{"file on the way", []string{"path", "file/x"}, "x", nil, 400},
			{"zero byte", []string{"path", "a\x00"}, "x", nil, 400},
			{"long name", []string{"path", strings.Repeat("n", 256)}, "x", nil, 400},
			{"other home", []string{"path", "~bob/x"}, "x", nil, 400},
			{"unknown user", []string{"path", "file", "username", "mallory"}, "x", nil, 401},
			{"unknown encoding", []string{"path", "file"}, "x", []string{"Content-Encoding", "br"}, 400},
			{"two encodings", []string{"path", "file"}, "x", []string{"Content-Encoding", "gzip, gzip"}, 400},
			{"bad atomic", []string{"path", "file", "atomic", "maybe"}, "x", nil, 400},
			{"long key", []string{"path", "file"}, "x", []string{"X-Metadata-" + long, "v"}, 400},
			{"no key", []string{"path", "file"}, "x", []string{"X-Metadata-", "v"}, 400},
			{"value not ASCII", []string{"path", "file"}, "x", []string{"X-Metadata-k", "\xfc"}, 400},
			{"much metadata", []string{"path", "file"}, "x", []string{"X-Metadata-k", strings.Repeat("v", 4096)}, 400},
			{"digest without colons", []string{"path", "file"}, "x", []string{"Repr-Digest", "sha-256=abc"}, 400},
			{"digest too short", []string{"path", "file"}, "x", []string{"Repr-Digest", "sha-256=:YWJj:"}, 400},
			{"two digests", []string{"path", "file"}, "x", []string{"Repr-Digest", digestOf("x"), "Content-Digest", digestOf("y")}, 400},
		} {
			r := s.do("POST", s.files(row.query...), strings.NewReader(row.body), append([]string{"Content-Type", octets}, row.headers...)...)
			if r.StatusCode != row.status {
				t.Errorf("%s: %s: %s", row.name, r.Status, r.body)
				continue
			}
			r.want(t, row.status)
			wantContents(t, filepath.Join(s.home, "file"), "old")
		}
		for _, contentType := range []string{
			"", "text/plain", "application/json", "multipart/mixed; boundary=x", "multipart/form-data", "/", "application/octet-stream; =",
		} {
			s.do("POST", s.files("path", "file"), strings.NewReader("x"), "Content-Type", contentType).want(t, 400)
		}
		for name, parts := range map[string][]formPart{
			"no file":          {{disposition: `name="other"; filename="x"`}},
			"nothing":          nil,
			"no name":          {{disposition: `name="file"`}},
			"two of one path":  {fileAs("f1", "1"), fileAs("./f1", "2")},
			"directory":        {fileAs("dir", "")},
			"digest of a part": {{disposition: `name="file"; filename="f2"`, headers: []string{"Repr-Digest", digestOf("y")}, contents: "x"}},
		} {
			if r := s.postForm(nil, parts...); r.StatusCode != 400 {
				t.Errorf("%s: %s: %s", name, r.Status, r.body)
			}
		}
		wantContents(t, filepath.Join(s.home, "f1"), "1")
		s.postForm([]string{"path", "f3"}, fileAs("f4", "1"), fileAs("f5", "2")).want(t, 400)
		body, contentType := form(t, fileAs("f6", "1"))
		for _, headers := range [][]string{{"Content-Digest", digestOf(body)}, {"Repr-Digest", "sha-256=:?:"}} {
			s.do("POST", s.files(), strings.NewReader(body), append(headers, "Content-Type", contentType)...).want(t, 400)
		}
		s.do("POST", s.files(), strings.NewReader(body[:len(body)-10]), "Content-Type", contentType).want(t, 400)
		s.do("POST", s.files(), strings.NewReader("garbage"), "Content-Type", contentType).want(t, 400)
		wantContents(t, filepath.Join(s.home, "file"), "old")
	})
}

// TestUploadFormCut: a form that ends before its last delimiter, wherever that
// is, is an error: a file after the cut would be missing. So is one whose
// compression does not end well.
func TestUploadFormCut(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		body, contentType := form(t, fileAs("f1", "one"), fileAs("f2", "two"))
		post := func(body string, headers ...string) reply {
			return s.do("POST", s.files(), strings.NewReader(body), append(headers, "Content-Type", contentType)...)
		}
		whole := len(body) - len("\r\n")
		for n := range whole {
			if r := post(body[:n]); r.StatusCode != 400 {
				t.Errorf("%d of %d bytes: %s: %s", n, len(body), r.Status, r.body)
			}
		}
		for _, end := range []string{"", "\r\n", "\r\nwhat nobody reads"} {
			post(body[:whole]+end).want(t, 200)
		}
		flipped := []byte(zipped(t, body))
		flipped[len(flipped)-6] ^= 1 // in the checksum
		post(string(flipped), "Content-Encoding", "gzip").want(t, 400)
	})
}

// TestUploadCorrupt: what does not decode is an error, and an atomic upload
// changes nothing then.
func TestUploadCorrupt(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		good := zipped(t, prose(300_000))
		flipped := []byte(good)
		flipped[len(flipped)-6] ^= 1 // in the checksum
		s.put("f", "old").want(t, 200)
		for _, bad := range []string{"", "x", "no gzip at all", good[:10], good[:len(good)-1], good[:len(good)/2], string(flipped), good + "trailing"} {
			r := s.do("POST", s.files("path", "f", "atomic", "true"), strings.NewReader(bad), "Content-Type", octets, "Content-Encoding", "gzip")
			if r.StatusCode != 400 {
				t.Errorf("%d bytes, %.20q: %s", len(bad), bad, r.Status)
			}
			wantContents(t, filepath.Join(s.home, "f"), "old")
		}
		wantNames(t, s.home, "f")
	})
}

func TestUploadAtomic(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		path := filepath.Join(s.home, "f")
		writeFile(t, path, "old")
		must(t, os.Chown(path, aliceUID, aliceGID))
		must(t, os.Chmod(path, 0o640))
		contents := noise(500_000)
		put := func(contents string, headers ...string) reply {
			return s.do("POST", s.files("path", "f", "atomic", "true"), strings.NewReader(contents), append([]string{"Content-Type", octets}, headers...)...)
		}
		for _, name := range []string{"Repr-Digest", "Content-Digest"} {
			r := put(contents, name, digestOf(contents+"x")).want(t, 400)
			if !strings.Contains(r.body, "digest") {
				t.Errorf("answer %s", r.body)
			}
			wantContents(t, path, "old")
			wantNames(t, s.home, "f")
		}
		// Of encoded contents, the digest is of what is sent.
		sent := zipped(t, contents)
		put(sent, "Content-Encoding", "gzip", "Repr-Digest", digestOf(contents)).want(t, 400)
		wantContents(t, path, "old")

		put(contents, "Repr-Digest", "sha-512=:AAAA:, "+digestOf(contents), "Content-Digest", digestOf(contents), "X-Metadata-k", "v").want(t, 200)
		wantContents(t, path, contents)
		put(sent, "Content-Encoding", "gzip", "Content-Digest", digestOf(sent)).want(t, 200)
		wantContents(t, path, contents)
		put("", "Content-Digest", digestOf("")).want(t, 200)
		wantContents(t, path, "")
		put("", "Content-Digest", digestOf("x")).want(t, 400)
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if st.Uid != aliceUID || st.Mode&0o777 != 0o640 {
			t.Errorf("owner %d, mode %o", st.Uid, st.Mode)
		}
		// Each part of a form has its own digest.
		r := s.postForm([]string{"atomic", "1"},
			formPart{`name="file"; filename="a"`, []string{"Repr-Digest", digestOf("aaa")}, "aaa"},
			formPart{`name="file"; filename="b"`, []string{"Repr-Digest", digestOf("bbb")}, "other"})
		r.want(t, 400)
		wantNames(t, s.home, "a", "f")
	})
}

// TestUploadMetadata: an upload replaces the set.
func TestUploadMetadata(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		r := s.put("f", "x", "X-Metadata-Color", "blue", "X-Metadata-UPPER", "Case", "X-Metadata-List", "a", "X-Metadata-List", "b").want(t, 200)
		want := `"metadata":{"color":"blue","list":"a, b","upper":"Case"}`
		if !strings.Contains(r.body, want) {
			t.Errorf("answer %s", r.body)
		}
		var value [64]byte
		n, err := unix.Getxattr(filepath.Join(s.home, "f"), "user.e2b.color", value[:])
		if string(value[:max(n, 0)]) != "blue" {
			t.Errorf("attribute %q, %v", value[:max(n, 0)], err)
		}
		if r := s.put("f", "y", "X-Metadata-Other", "1").want(t, 200); !strings.Contains(r.body, `"metadata":{"other":"1"}`) {
			t.Errorf("answer %s", r.body)
		}
		if r := s.put("f", "y").want(t, 200); strings.Contains(r.body, "metadata") {
			t.Errorf("answer %s", r.body)
		}
		body, contentType := form(t, fileAs("one", "1"), fileAs("two", "2"))
		r = s.do("POST", s.files(), strings.NewReader(body), "Content-Type", contentType, "X-Metadata-K", "v").want(t, 200)
		if strings.Count(r.body, `"metadata":{"k":"v"}`) != 2 {
			t.Errorf("answer %s", r.body)
		}
	})
}

func TestPatch(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		path := filepath.Join(s.home, "d/f")
		patch := func(contentRange, body string, headers ...string) reply {
			if contentRange != "" {
				headers = append(headers, "Content-Range", contentRange)
			}
			return s.do("PATCH", s.files("path", "d/f"), strings.NewReader(body), headers...)
		}
		patch("bytes 5-9/10", "world").want(t, 409) // there is nothing to continue
		wantNames(t, s.home)
		r := patch("bytes 0-4/10", "hello", "X-Metadata-K", "v").want(t, 200)
		if want := fmt.Sprintf(`[{"path":%q,"name":"f","type":"file","metadata":{"k":"v"}}]`, path); r.body != want {
			t.Errorf("answer %s, want %s", r.body, want)
		}
		wantOwner(t, path, aliceUID, aliceGID)
		patch("bytes 6-9/10", "orld").want(t, 409)
		patch("bytes 5-9/10", "world", "Content-Type", octets, "Content-Digest", digestOf("world")).want(t, 200)
		wantContents(t, path, "helloworld")
		patch("bytes 2-3/*", "LL").want(t, 200)
		wantContents(t, path, "heLLoworld")
		patch("BYTES 0-0/99", "H").want(t, 200)
		wantContents(t, path, "HeLLoworld")
		s.do("PATCH", s.files("path", "d/f"), io.MultiReader(strings.NewReader("!")), "Content-Range", "bytes 10-10/*").want(t, 200)
		wantContents(t, path, "HeLLoworld!")

		for _, row := range []struct {
			contentRange, body string
			headers            []string
		}{
			{"", "x", nil},
			{"bytes 0-0", "x", nil},
			{"bytes */10", "x", nil},
			{"items 0-0/1", "x", nil},
			{"bytes 1-0/*", "", nil},
			{"bytes 0-1/*", "x", nil},
			{"bytes 0-0/*", "xx", nil},
			{"bytes 0-5/5", "xxxxxx", nil},
			{"bytes 0-9223372036854775807/*", "x", nil},
			{"bytes 0-0/*", "x", []string{"Content-Type", "multipart/form-data; boundary=x"}},
			{"bytes 0-0/*", "x", []string{"Content-Encoding", "gzip"}},
			{"bytes 0-0/*", "x", []string{"Repr-Digest", digestOf("x")}},
			{"bytes 0-0/*", "x", []string{"X-Metadata-k", "\xfc"}},
		} {
			if r := patch(row.contentRange, row.body, row.headers...); r.StatusCode != 400 {
				t.Errorf("%+v: %s: %s", row, r.Status, r.body)
			}
		}
		// Without a length, more or less than announced shows only at the end.
		for _, row := range [][2]string{{"", "HeLLoworld!"}, {"y", "yeLLoworld!"}, {"yzz", "yzLLoworld!"}} {
			s.do("PATCH", s.files("path", "d/f"), io.MultiReader(strings.NewReader(row[0])), "Content-Range", "bytes 0-1/*").want(t, 400)
			wantContents(t, path, row[1])
		}
		s.do("PATCH", s.files(), strings.NewReader("x"), "Content-Range", "bytes 0-0/*").want(t, 400)
		s.do("PATCH", s.files("path", "d"), strings.NewReader("x"), "Content-Range", "bytes 0-0/*").want(t, 400)
		s.do("PATCH", s.files("path", "f", "atomic", "true"), strings.NewReader("x"), "Content-Range", "bytes 0-0/*").want(t, 400)
	})
}

func TestCompose(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		compose := func(body string, headers ...string) reply {
			return s.do("POST", s.base+"/files/compose", strings.NewReader(body), headers...)
		}
		parts := []string{noise(300_000), "", noise(10)}
		for i, contents := range parts {
			s.put(fmt.Sprint("p", i), contents).want(t, 200)
		}
		must(t, os.Mkdir(filepath.Join(s.home, "dir"), 0o755))
		for _, row := range []struct {
			body   string
			status int
		}{
			{"", 400},
			{"{", 400},
			{"[]", 400},
			{`{"source_paths":"p0","destination":"all"}`, 400},
			{`{"destination":"all"}`, 400},
			{`{"source_paths":[],"destination":"all"}`, 400},
			{`{"source_paths":[` + strings.Repeat(`"",`, maxCompose/3) + `""],"destination":"all"}`, 413},
			{`{"source_paths":["p0"]}`, 400},
			{`{"source_paths":["p0","p1"],"destination":"p1"}`, 400},
			{`{"source_paths":["p0","dir"],"destination":"all"}`, 400},
			{`{"source_paths":["p0",""],"destination":"all"}`, 400},
			{`{"source_paths":["p0","gone"],"destination":"all"}`, 404},
			{`{"source_paths":["p0"],"destination":"dir"}`, 400},
			{`{"source_paths":["p0"],"destination":"all","username":"mallory"}`, 401},
		} {
			if r := compose(row.body); r.StatusCode != row.status {
				t.Errorf("%s: %s: %s", row.body, r.Status, r.body)
			}
		}
		wantNames(t, s.home, "dir", "p0", "p1", "p2")
		r := compose(`{"source_paths":["p0","~/p1","p2"],"destination":"new/all","username":"alice"}`, "X-Metadata-K", "v").want(t, 200)
		if want := fmt.Sprintf(`{"path":%q,"name":"all","type":"file","metadata":{"k":"v"}}`, s.home+"/new/all"); r.body != want {
			t.Errorf("answer %s, want %s", r.body, want)
		}
		wantContents(t, filepath.Join(s.home, "new/all"), strings.Join(parts, ""))
		wantNames(t, s.home, "dir", "new")
	})
}

func TestFilesMethods(t *testing.T) {
	leaktest.Check(t)
	s := newSite(t, homeDir(t), false)
	for _, row := range []struct{ method, path, allow string }{
		{"PUT", "/files", "GET, HEAD, PATCH, POST"},
		{"DELETE", "/files", "GET, HEAD, PATCH, POST"},
		{"GET", "/files/compose", "POST"},
	} {
		s.do(row.method, s.base+row.path, nil).want(t, 405).wantHeader(t, "Allow", row.allow)
	}
	s.do("GET", s.base+"/files/other", nil).want(t, 404)
}

// TestUploadAbandoned: a client that vanishes in the middle leaves an error in
// the log and no descriptor. A file keeps what came; an atomic upload is as if
// it had never begun.
func TestUploadAbandoned(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		const some = 300_000
		head := noise(some)
		file, contentType := form(t, fileAs("form", noise(2*some)))
		zip := zipped(t, noise(2*some))
		for name, c := range map[string]struct{ target, headers, sent string }{
			"raw":    {"path=raw", "POST /files?%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n", head},
			"atomic": {"path=atomic&atomic=true", "POST /files?%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n", head},
			"form":   {"x=form", "POST /files?%s HTTP/1.1\r\nHost: x\r\nContent-Type: " + contentType + "\r\nContent-Length: 1000000\r\n\r\n", file[:some]},
			"gzip":   {"path=gzip", "POST /files?%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Encoding: gzip\r\nContent-Length: 1000000\r\n\r\n", zip[:some]},
			"patch":  {"path=patch", "PATCH /files?%s HTTP/1.1\r\nHost: x\r\nContent-Range: bytes 0-999999/*\r\nContent-Length: 1000000\r\n\r\n", head},
			"chunks": {"path=chunks", "POST /files?%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n", "f4240\r\n" + head},
		} {
			t.Run(name, func(t *testing.T) {
				conn, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
				must(t, err)
				_, err = fmt.Fprintf(conn, c.headers+"%s", c.target, c.sent)
				must(t, err)
				must(t, conn.Close())
				limit := time.Now().Add(10 * time.Second)
				for !strings.Contains(s.log.String(), "upload broke off") && time.Now().Before(limit) {
					time.Sleep(time.Millisecond)
				}
				s.log.mu.Lock()
				log := s.log.buf.String()
				s.log.buf.Reset()
				s.log.mu.Unlock()
				if !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "upload broke off") || !strings.Contains(log, "unexpected EOF") {
					t.Errorf("log: %q", log)
				}
				if strings.Contains(log, head[:10]) {
					t.Error("the log has contents")
				}
			})
		}
		wantContents(t, filepath.Join(s.home, "raw"), head)
		wantContents(t, filepath.Join(s.home, "patch"), head)
		wantContents(t, filepath.Join(s.home, "chunks"), head)
		wantNames(t, s.home, "chunks", "form", "gzip", "patch", "raw")
		// Continue where it broke.
		rest := noise(1000)
		s.do("PATCH", s.files("path", "raw"), strings.NewReader(rest), "Content-Range", fmt.Sprintf("bytes %d-%d/*", some, some+999)).want(t, 200)
		wantContents(t, filepath.Join(s.home, "raw"), head+rest)
	})
}

// TestUploadEvents is the promise of the wire: a watcher sees the upload of a
// small new file as CREATE, CHMOD, WRITE.
func TestUploadEvents(t *testing.T) {
	bothModes(t, func(t *testing.T, s *site) {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		must(t, err)
		defer unix.Close(fd)
		_, err = unix.InotifyAddWatch(fd, s.home, unix.IN_CREATE|unix.IN_ATTRIB|unix.IN_MODIFY|unix.IN_MOVED_TO|unix.IN_DELETE)
		must(t, err)
		form, contentType := form(t, fileAs("form", "small"))
		for name, upload := range map[string]func() reply{
			"raw":      func() reply { return s.put("raw", "small") },
			"metadata": func() reply { return s.put("metadata", "small", "X-Metadata-A", "1", "X-Metadata-B", "2") },
			"gzip":     func() reply { return s.put("gzip", zipped(t, "small"), "Content-Encoding", "gzip") },
			"form":     func() reply { return s.do("POST", s.files(), strings.NewReader(form), "Content-Type", contentType) },
			"patch": func() reply {
				return s.do("PATCH", s.files("path", "patch"), strings.NewReader("x"), "Content-Range", "bytes 0-0/1")
			},
		} {
			upload().want(t, 200)
			var buf [4096]byte
			n, err := unix.Read(fd, buf[:])
			must(t, err)
			var got []uint32
			for p := buf[:n]; len(p) > 0; p = p[unix.SizeofInotifyEvent+binary.NativeEndian.Uint32(p[12:]):] {
				got = append(got, binary.NativeEndian.Uint32(p[4:]))
			}
			if want := []uint32{unix.IN_CREATE, unix.IN_ATTRIB, unix.IN_MODIFY}; !slices.Equal(got, want) {
				t.Errorf("%s: events %#x", name, got)
			}
		}
	})
}

// TestUploadExpectContinue: what is refused for its path is refused before the
// body is sent.
func TestUploadExpectContinue(t *testing.T) {
	leaktest.Check(t)
	home := homeDir(t)
	s := newSite(t, home, false)
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
	must(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "POST /files?path=%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"+
		"Content-Length: 1000000000000000\r\nExpect: 100-continue\r\n\r\n", home)
	var answer [100]byte
	_, err = io.ReadFull(conn, answer[:])
	must(t, err)
	if !bytes.HasPrefix(answer[:], []byte("HTTP/1.1 400 Bad Request\r\n")) {
		t.Errorf("got %q", answer)
	}
}
