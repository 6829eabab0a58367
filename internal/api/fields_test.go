package api

import (
	"encoding/base64"
	"fmt"
	"mime"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/wrenn/envd/internal/filesystem"
)

func TestDisposition(t *testing.T) {
	for name, want := range map[string]string{
		"a.txt":     `inline; filename=a.txt`,
		"a b":       `inline; filename="a b"`,
		`a"b\c`:     `inline; filename="a\"b\\c"`,
		"ü.txt":     `inline; filename="_.txt"; filename*=UTF-8''%C3%BC.txt`,
		"a\r\nb: c": `inline; filename="a__b: c"; filename*=UTF-8''a%0D%0Ab%3A%20c`,
		"\xff":      `inline; filename="_"; filename*=UTF-8''%EF%BF%BD`,
		"":          `inline; filename=""`,
	} {
		if got := disposition("inline", name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func FuzzDisposition(f *testing.F) {
	for _, s := range []string{"a.txt", "a b", `"\`, "ü", "\r\n", "\xff\x00", "%41", "a'b*c", "日本語"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		value := disposition("inline", name)
		if strings.IndexFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
			t.Errorf("%q: %q is no header", name, value)
		}
		kind, p, err := mime.ParseMediaType(value)
		if want := strings.ToValidUTF8(name, string(utf8.RuneError)); err != nil || kind != "inline" || p["filename"] != want {
			t.Errorf("%q: %s is read as %q, %v", name, value, p["filename"], err)
		}
	})
}

func TestContentType(t *testing.T) {
	for path, want := range map[string]string{
		"/a/b.txt": "text/plain; charset=utf-8", "b.JSON": "application/json", "x.tar.gz": "application/gzip",
		"Makefile": octets, ".bashrc": octets, "x.": octets, "dir.txt/file": octets, "x.unheard-of": octets,
		"i.html": "text/html; charset=utf-8", "p.png": "image/png",
	} {
		if got := contentType(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for value, want := range map[string]contentRange{
		"bytes 0-0/1":                       {0, 1},
		"bytes 5-9/*":                       {5, 5},
		"Bytes 5-9/10":                      {5, 5},
		"bytes 4294967296-4294967299/*":     {1 << 32, 4},
		"bytes 0-9223372036854775806/*":     {0, 1<<63 - 1},
		"bytes 007-008/009":                 {7, 2},
		"":                                  {},
		"bytes":                             {},
		"bytes */5":                         {},
		"bytes 0-0":                         {},
		"bytes 0-0/":                        {},
		"bytes 0-0/0":                       {},
		"bytes -5/*":                        {},
		"bytes 5-/*":                        {},
		"bytes 5-4/*":                       {},
		"bytes +5-+6/*":                     {},
		"bytes 0x1-0x2/*":                   {},
		"bytes  1-2/*":                      {},
		"bytes 1-2/3/4":                     {},
		"bytes 1-2-3/*":                     {},
		"bytes 0-9223372036854775807/*":     {},
		"bytes 0-99999999999999999999999/*": {},
	} {
		r, ok := parseContentRange(value)
		if ok != (want.length > 0) || ok && r != want {
			t.Errorf("%q: %+v, %v", value, r, ok)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 5-9/*", "bytes */5", "bytes 0-9223372036854775807/*", "items 1-2/3", "bytes 1-2-3/4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		r, ok := parseContentRange(value)
		if !ok {
			return
		}
		last := r.first + r.length - 1
		if r.first < 0 || r.length < 1 || last < r.first {
			t.Fatalf("%q: %+v", value, r)
		}
		again, ok := parseContentRange(fmt.Sprintf("bytes %d-%d/*", r.first, last))
		if !ok || again != r {
			t.Errorf("%q: %+v, again %+v, %v", value, r, again, ok)
		}
	})
}

func TestParseDigest(t *testing.T) {
	sum := strings.Repeat("x", 32)
	b64 := base64.StdEncoding.EncodeToString([]byte(sum))
	for value, want := range map[string]string{
		"":                                      "",
		"sha-512=:AAAA:":                        "",
		"sha-256=:" + b64 + ":":                 sum,
		" sha-256=:" + b64 + ": ":               sum,
		"md5=:AA==:,\tsha-256=:" + b64 + ":":    sum,
		"sha-256=:" + b64 + ":;p=1":             sum,
		"sha-256=:" + b64[:43] + ":":            sum, // without padding
		"SHA-256=:" + b64 + ":":                 "",  // keys are in lower case
		"sha-256":                               "!",
		"sha-256=" + b64:                        "!",
		"sha-256=::":                            "!",
		"sha-256=:":                             "!",
		"sha-256=:AAAA:":                        "!",
		"sha-256=:" + b64 + b64 + ":":           "!",
		"sha-256=:" + b64[:42] + "*" + ":":      "!",
		"sha-256=:AAAA:, sha-256=:" + b64 + ":": "!",
	} {
		got, err := parseDigest(value)
		if string(got) != strings.Trim(want, "!") || (err != nil) != (want == "!") {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
}

func FuzzDigest(f *testing.F) {
	f.Add("sha-256=:" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + ":")
	for _, s := range []string{"", "sha-256=:AAAA:", "sha-256=", "md5=:AA==:, sha-256", "sha-256=:====:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		sum, err := parseDigest(value)
		if err != nil && statusOf(err) != http.StatusBadRequest || sum != nil && len(sum) != 32 && err == nil {
			t.Fatalf("%q: %d bytes, %v", value, len(sum), err)
		}
		if err != nil || sum == nil {
			return
		}
		again, err := parseDigest("sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":")
		if err != nil || string(again) != string(sum) {
			t.Errorf("%q: %x, again %x, %v", value, sum, again, err)
		}
	})
}

func TestPartFilename(t *testing.T) {
	for disposition, want := range map[string]string{
		`form-data; name="file"; filename="a.txt"`:        "a.txt",
		`form-data; name=file; filename=a.txt`:            "a.txt",
		`form-data; name="file"; filename="/abs/dir/f"`:   "/abs/dir/f",
		`form-data; name="file"; filename="../up"`:        "../up",
		`form-data; name="file"; filename="~/f"`:          "~/f",
		`form-data; name="file"; filename="C:\dir\f"`:     `C:\dir\f`,
		`form-data; name="file"; filename="q\"q"`:         `q"q`,
		`form-data; name="file"; filename="q%22q%0A%0d"`:  "q\"q\n%0d",
		`form-data; name="file"; filename="ü"`:            "ü",
		`form-data; name="file"; filename*=UTF-8''%C3%BC`: "ü",
		`form-data; name="file"; filename=""`:             "",
		`form-data; name="file"`:                          "",
		`form-data; name="file"; filename="a`:             "",
		`form-data; filename=a; filename=b`:               "",
		``:                                                "",
		"form-data; filename*=UTF-8''a%00b":               "",
	} {
		got, err := partFilename(disposition)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", disposition, got, err)
		}
	}
}

func FuzzPartFilename(f *testing.F) {
	for _, s := range []string{"a.txt", "dir/f", `q"q`, "new\nline", "100%", "%22", `back\slash`, "\xff", "ü"} {
		f.Add(`form-data; name="file"; filename="`+s+`"`, s)
	}
	f.Add("form-data; filename*=UTF-8''%C3%BC", "")
	escape := strings.NewReplacer(`"`, "%22", "\n", "%0A", "\r", "%0D")
	f.Fuzz(func(t *testing.T, disposition, name string) {
		got, err := partFilename(disposition)
		if err != nil && (got != "" || statusOf(err) != http.StatusBadRequest) || err == nil && got == "" || strings.Contains(got, "\x00") {
			t.Fatalf("%q: %q, %v", disposition, got, err)
		}
		// What a browser sends of a name comes back, as far as it can be told.
		if name == "" || strings.ContainsAny(name, "\x00\\") || unescapeFilename.Replace(name) != name {
			return
		}
		got, err = partFilename(`form-data; name="file"; filename="` + escape.Replace(name) + `"`)
		if err != nil || got != name {
			t.Errorf("sent %q, got %q, %v", name, got, err)
		}
	})
}

// FuzzRange asks for ranges of a real file, and checks that what comes is what
// the answer says it is.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-0", "bytes=-5", "bytes=10-", "bytes=1-2,4-5", "bytes=99-200", "bytes=100-", "bytes=x", "bytes=0-0,0-0,0-0", "items=1-2", "bytes = 1 - 2"} {
		f.Add(s)
	}
	contents := noise(100)
	path := filepath.Join(f.TempDir(), "f")
	must(f, os.WriteFile(path, []byte(contents), 0o644))
	v := &filesystem.View{}
	f.Fuzz(func(t *testing.T, value string) {
		file, err := v.Open(path)
		must(t, err)
		defer file.Close()
		r := httptest.NewRequest("GET", "/files", nil)
		r.Header["Range"] = []string{value}
		w := httptest.NewRecorder()
		must(t, download(w, r, file))
		body := w.Body.String()
		switch w.Code {
		case 200:
			if body != contents {
				t.Errorf("%q: %d bytes", value, len(body))
			}
		case 206:
			if length, err := strconv.Atoi(w.Header().Get("Content-Length")); err != nil || length != len(body) {
				t.Errorf("%q: Content-Length %d for %d bytes", value, length, len(body))
			}
			var first, last, size int
			if n, _ := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); n == 3 && (size != 100 || body != contents[first:last+1]) {
				t.Errorf("%q: %s: %q", value, w.Header().Get("Content-Range"), body)
			}
		case 416:
			if !strings.HasPrefix(body, `{"code":416,"message":"`) {
				t.Errorf("%q: %s", value, body)
			}
		default:
			t.Errorf("%q: status %d", value, w.Code)
		}
	})
}
