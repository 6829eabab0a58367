package api

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"

	"github.com/wrenn/envd/internal/filesystem"
)

// metadataHeader starts the headers that become metadata.
const metadataHeader = "X-Metadata-"

// rawType is the content type of a body that is a file.
const rawType = "application/octet-stream"

// written describes a file, or the directory of an archive, to its uploader.
type written struct {
	Path     string              `json:"path"`
	Name     string              `json:"name"`
	Type     string              `json:"type"`
	Metadata filesystem.Metadata `json:"metadata,omitempty"`
}

func writtenFile(e filesystem.Entry) written {
	return written{Path: text(e.Path), Name: text(e.Name), Type: "file", Metadata: e.Metadata}
}

// answer sends v as JSON.
func answer(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the client is gone: nothing to tell
	return nil
}

// upload is what a request has to say of the files that it brings.
type upload struct {
	*filesystem.View
	query    url.Values
	header   http.Header
	metadata filesystem.Metadata
	atomic   bool
}

func newUpload(r *http.Request, v *filesystem.View) (u upload, err error) {
	v.Names = nil // the answer names no owners: do not look them up
	u = upload{View: v, query: r.URL.Query(), header: r.Header, metadata: metadataIn(r.Header)}
	u.atomic, err = flagIn(u.query, "atomic")
	return u, err
}

// metadataIn collects metadata from headers. Of several fields of one name
// HTTP makes one list.
func metadataIn(h http.Header) filesystem.Metadata {
	var m filesystem.Metadata
	for name, values := range h {
		if key, ok := strings.CutPrefix(name, metadataHeader); ok {
			if m == nil {
				m = make(filesystem.Metadata)
			}
			m[strings.ToLower(key)] = strings.Join(values, ", ")
		}
	}
	return m
}

// post answers POST: files, by the type of the body.
func (t *fileTransfer) post(w http.ResponseWriter, r *http.Request, v *filesystem.View) error {
	u, err := newUpload(r, v)
	if err != nil {
		return err
	}
	mediaType, parameters := r.Header.Get("Content-Type"), map[string]string(nil)
	if mediaType != rawType {
		if mediaType, parameters, err = mime.ParseMediaType(mediaType); err != nil {
			return badRequest("content type %q: %w", r.Header.Get("Content-Type"), err)
		}
	}
	body := &clientBody{ReadCloser: r.Body}
	err = decoded(r, body, func(src io.Reader, size int64) error {
		a, isArchive := archiveType(mediaType)
		switch {
		case mediaType == rawType:
			return u.raw(w, src, body, size)
		case mediaType == "multipart/form-data":
			return u.multipart(w, src, parameters["boundary"])
		case isArchive:
			// Unpacking is a user's work in any case.
			return t.threads.within(r.Context(), !t.UserAccess && v.User.UID != 0, func() error { return u.unpack(w, src, a) })
		default:
			return badRequest("content type %q is neither multipart/form-data, nor application/octet-stream, nor an archive", mediaType)
		}
	})
	t.logBroken(r, body)
	return err
}

// logBroken logs that the client of r did not send its body to the end.
func (t *fileTransfer) logBroken(r *http.Request, body *clientBody) {
	if body.err != nil {
		t.Log.ErrorContext(r.Context(), "upload broke off",
			"path", r.URL.Query().Get("path"), "received", body.n, "error", body.err)
	}
}

// clientBody is a request's body that remembers how it broke off.
type clientBody struct {
	io.ReadCloser
	n   int64 // bytes read
	err error // nil while it goes on, and after its proper end
}

func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errDigest) {
		b.err = err
	}
	return n, err //nolint:wrapcheck // readers compare it
}

var gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}

// decoded calls use with the body of r without its content coding, and with the
// size of that, or -1.
func decoded(r *http.Request, body io.Reader, use func(src io.Reader, size int64) error) error {
	switch name := strings.ToLower(strings.Join(r.Header["Content-Encoding"], ",")); name {
	case "", "identity":
		return use(body, r.ContentLength)
	case "gzip", "x-gzip":
		z := openGzip(body)
		defer z.release()
		return use(z, -1)
	default:
		return badRequest("content encoding %q is not supported, only gzip is", name)
	}
}

// lateGzip reads nothing, not even the header, before somebody reads from it: a
// request that is refused for its path needs no good body.
type lateGzip struct {
	z     *gzip.Reader
	src   io.Reader
	begun bool
}

func openGzip(src io.Reader) *lateGzip {
	return &lateGzip{z: gzipReaders.Get().(*gzip.Reader), src: src}
}

func (l *lateGzip) Read(p []byte) (int, error) {
	if !l.begun {
		if err := l.z.Reset(l.src); err != nil {
			if errors.Is(err, io.EOF) { // it is no end of contents
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		l.begun = true
	}
	return l.z.Read(p) //nolint:wrapcheck // readers compare it
}

func (l *lateGzip) release() {
	_ = l.z.Reset(http.NoBody) // so that it holds on to no connection
	gzipReaders.Put(l.z)
}

// raw writes the one file that is the whole body. received are the bytes as
// they came, which digests are of.
func (u *upload) raw(w http.ResponseWriter, src io.Reader, received *clientBody, size int64) error {
	path := u.query.Get("path")
	if path == "" {
		return badRequest("an upload of application/octet-stream needs the query parameter path")
	}
	sum, err := digestIn(u.header)
	if err != nil {
		return err
	}
	if sum != nil {
		// Between the connection and the decoder: HTTP's digests are of
		// encoded contents.
		received.ReadCloser = &digester{ReadCloser: received.ReadCloser, want: sum}
	}
	e, err := u.write(path, src, size)
	if err != nil {
		return err
	}
	return answer(w, []written{writtenFile(e)})
}

func (u *upload) write(path string, src io.Reader, size int64) (filesystem.Entry, error) {
	return u.Write(path, src, filesystem.Upload{Size: size, Metadata: u.metadata, Atomic: u.atomic})
}
