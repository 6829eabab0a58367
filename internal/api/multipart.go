package api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"

	"github.com/wrenn/envd/internal/filesystem"
)

// The standard library's multipart reader takes pieces of 4 KiB, each a system
// call. In between it gets larger ones.
var inputs = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, blockSize) }}

// multipart writes the files that are the parts named "file".
func (u *upload) multipart(w http.ResponseWriter, src io.Reader, boundary string) error {
	if boundary == "" {
		return badRequest("multipart/form-data without a boundary")
	}
	// What would have to match is all of the body, which is not known before
	// the last file is written.
	if sum, err := digestIn(u.header); sum != nil || err != nil {
		return badRequest("the digest of a file in multipart/form-data belongs into the headers of its part")
	}
	in := inputs.Get().(*bufio.Reader)
	defer inputs.Put(in)
	in.Reset(&delimited{src: src, last: []byte("--" + boundary + "--")})
	defer in.Reset(nil)

	files := []written{}
	seen := make(map[string]bool)
	for parts := multipart.NewReader(in, boundary); ; {
		// Raw: a file is not quoted-printable because its part says so.
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			// What follows the last delimiter is nothing, or the checksum of
			// the compression.
			if _, err = io.Copy(io.Discard, src); err == nil && len(files) == 0 {
				return badRequest("no part is named \"file\"")
			}
			if err == nil {
				return answer(w, files)
			}
		}
		if err != nil {
			return badRequest("multipart/form-data: %w", err)
		}
		if part.FormName() != "file" {
			continue
		}
		e, err := u.part(part, seen)
		if err != nil {
			return err
		}
		files = append(files, writtenFile(e))
	}
}

// delimited is a body of multipart/form-data, to which its end comes unexpected
// unless the last delimiter has just gone by: package multipart takes a body that
// ends between two parts for a whole one.
type delimited struct {
	src  io.Reader
	last []byte // the last delimiter
	tail []byte // of what was read, as long as that
}

func (d *delimited) Read(p []byte) (int, error) {
	n, err := d.src.Read(p)
	d.tail = append(d.tail, p[max(0, n-len(d.last)):n]...)
	d.tail = append(d.tail[:0], d.tail[max(0, len(d.tail)-len(d.last)):]...)
	if errors.Is(err, io.EOF) && !bytes.Equal(d.tail, d.last) {
		err = io.ErrUnexpectedEOF
	}
	return n, err //nolint:wrapcheck // readers compare it
}

// part writes the file of one part. seen are the paths written before it.
func (u *upload) part(part *multipart.Part, seen map[string]bool) (e filesystem.Entry, err error) {
	path := u.query.Get("path")
	if path == "" {
		if path, err = partFilename(part.Header.Get("Content-Disposition")); err != nil {
			return e, err
		}
	}
	resolved, err := u.User.Resolve(path)
	if err != nil {
		return e, err
	}
	if seen[resolved] {
		return e, badRequest("two files for the path %s in one upload", resolved)
	}
	seen[resolved] = true
	sum, err := digestIn(part.Header)
	if err != nil {
		return e, err
	}
	var src io.ReadCloser = part
	if sum != nil {
		src = &digester{ReadCloser: part, want: sum}
	}
	return u.write(path, src, -1)
}

// unescapeFilename undoes what browsers and fetch do to the three bytes that
// cannot stand in a quoted filename (HTML, multipart/form-data encoding
// algorithm). They leave "%" alone, so that no more can be undone.
var unescapeFilename = strings.NewReplacer("%22", `"`, "%0A", "\n", "%0D", "\r")

// partFilename is the filename in the Content-Disposition of a part, with its
// directories: multipart.Part.FileName drops those.
func partFilename(disposition string) (string, error) {
	_, parameters, err := mime.ParseMediaType(disposition)
	if err != nil {
		return "", badRequest("content disposition of a part: %w", err)
	}
	name := parameters["filename"]
	if name == "" {
		return "", badRequest("a file needs a path: as query parameter, or as the filename of its part")
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: filename contains a zero byte", filesystem.ErrInvalid)
	}
	return unescapeFilename.Replace(name), nil
}
