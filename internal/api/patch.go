package api

import (
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/wrenn/envd/internal/filesystem"
)

// contentRange is the part of a file that a PATCH brings.
type contentRange struct {
	first, length int64
}

// parseContentRange reads "bytes FIRST-LAST/SIZE" or "bytes FIRST-LAST/*" (RFC
// 9110, section 14.4).
func parseContentRange(value string) (r contentRange, ok bool) {
	unit, rest, _ := strings.Cut(value, " ")
	span, size, sized := strings.Cut(rest, "/")
	from, to, _ := strings.Cut(span, "-")
	first, ok1 := parseOffset(from)
	last, ok2 := parseOffset(to)
	if !strings.EqualFold(unit, "bytes") || !sized || !ok1 || !ok2 || last < first || last == math.MaxInt64 {
		return r, false
	}
	if size != "*" {
		if total, ok := parseOffset(size); !ok || total <= last {
			return r, false
		}
	}
	return contentRange{first, last - first + 1}, true
}

// parseOffset reads digits and nothing else.
func parseOffset(s string) (n int64, ok bool) {
	u, err := strconv.ParseUint(s, 10, 63)
	return int64(u), err == nil && s[0] != '+'
}

// patch answers PATCH: it continues an upload at an offset.
func (t *fileTransfer) patch(w http.ResponseWriter, r *http.Request, v *filesystem.View) error {
	u, err := newUpload(r, v)
	if err != nil {
		return err
	}
	part, err := u.checkPatch(r)
	if err != nil {
		return err
	}
	body := &clientBody{ReadCloser: r.Body}
	src := &exactly{src: body, left: part.length}
	sum, err := digestIn(r.Header)
	if err != nil {
		return err
	}
	if sum != nil {
		body.ReadCloser = &digester{ReadCloser: r.Body, want: sum}
	}
	e, err := v.Resume(u.query.Get("path"), part.first, src,
		filesystem.Upload{Size: part.length, Metadata: u.metadata})
	t.logBroken(r, body)
	if err != nil {
		return err
	}
	return answer(w, []written{writtenFile(e)})
}

// checkPatch says which part r brings, or what is wrong with it.
func (u *upload) checkPatch(r *http.Request) (part contentRange, err error) {
	value := r.Header.Get("Content-Range")
	part, ok := parseContentRange(value)
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")) // "" if there is none
	switch {
	case u.query.Get("path") == "":
		return part, badRequest("PATCH needs the query parameter path")
	case value == "":
		return part, badRequest("PATCH needs a Content-Range, such as: bytes 100-199/*")
	case !ok:
		return part, badRequest("content range %q is not bytes FIRST-LAST/SIZE or bytes FIRST-LAST/*", value)
	case mediaType != "" && mediaType != rawType:
		return part, badRequest("content type %q of a PATCH is not application/octet-stream", mediaType)
	case r.Header.Get("Content-Encoding") != "":
		return part, badRequest("a PATCH has no content encoding")
	case r.Header.Get("Repr-Digest") != "":
		return part, badRequest("a PATCH brings a part of a file: its digest is Content-Digest")
	case u.atomic:
		return part, badRequest("a PATCH cannot be atomic")
	case r.ContentLength >= 0 && r.ContentLength != part.length:
		return part, badRequest("a body of %d bytes is not the %d bytes of %q", r.ContentLength, part.length, value)
	}
	return part, nil
}

var errTooMuch = errors.New("there is more in the body than Content-Range says")

// exactly is src, which must end after left bytes.
type exactly struct {
	src  io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (n int, err error) {
	if e.left == 0 {
		var more [1]byte
		if n, err = io.ReadFull(e.src, more[:]); n > 0 {
			return 0, errTooMuch
		}
		return 0, err //nolint:wrapcheck // readers compare it
	}
	n, err = e.src.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	return n, err //nolint:wrapcheck // readers compare it
}
