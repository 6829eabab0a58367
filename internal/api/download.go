package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/wrenn/envd/internal/filesystem"
)

// blockSize is how much of a file passes through memory at a time, in bytes. A
// file of up to that size is answered in one write.
const blockSize = 64 << 10

var blocks = sync.Pool{New: func() any { return new([blockSize]byte) }}

var errNotAcceptable = statusError{http.StatusNotAcceptable, errors.New("none of the accepted encodings is possible here")}

// conditional are the headers that are about the bytes as they lie in the file.
var conditional = [...]string{
	"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since",
}

// get answers GET and HEAD.
func (t *fileTransfer) get(w http.ResponseWriter, r *http.Request, v *filesystem.View) error {
	path := r.URL.Query().Get("path")
	f, err := v.Open(path)
	if errors.Is(err, filesystem.ErrIsDirectory) {
		w.Header().Add("Vary", "Accept")
		if a, ok := acceptedArchive(r.Header["Accept"]); ok {
			return pack(w, r, v, path, a)
		}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return v.Do(func() error { return download(w, r, f) })
}

// download sends the contents of f in the coding that the client prefers.
func download(w http.ResponseWriter, r *http.Request, f *filesystem.File) error {
	h := w.Header()
	h.Add("Vary", "Accept-Encoding")
	h.Set("Content-Type", contentType(f.Path))
	h.Set("Content-Disposition", disposition("inline", filepath.Base(f.Path)))
	c, plain := acceptedCodings(r.Header["Accept-Encoding"])
	exact := false
	for _, name := range conditional {
		exact = exact || r.Header[name] != nil
	}
	if exact {
		c = identity
	}
	switch {
	case c == identity && !plain:
		return errNotAcceptable
	case f.Generated:
		return sendGenerated(w, r, f, c, plain)
	}
	h.Set("Last-Modified", f.ModTime.UTC().Format(http.TimeFormat))
	switch {
	case exact:
		h.Set("Etag", f.ETag())
		// Ranges and conditions. It closes a response that gets too short.
		http.ServeContent(&contentStatus{jsonStatus{ResponseWriter: w, r: r}}, r, "", f.ModTime, f.File)
		return nil
	case c != identity:
		return sendEncoded(w, r, f, c, plain)
	default:
		return sendPlain(w, r, f)
	}
}

// contentStatus is jsonStatus for http.ServeContent: the kernel still copies.
type contentStatus struct{ jsonStatus }

// WriteHeader forgets of what kind contents that are not sent would be: an error
// of a file that looks like an RPC's answer gets its body all the same.
func (w *contentStatus) WriteHeader(status int) {
	if status >= http.StatusBadRequest {
		w.Header().Del("Content-Type")
		w.Header().Del("Content-Disposition")
	}
	w.jsonStatus.WriteHeader(status)
}

func (w *contentStatus) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(w.ResponseWriter, r) //nolint:wrapcheck // io.Copy's caller knows the error
}

// sendPlain sends f as it is: a small one in one write with the headers, the
// rest by sendfile(2) where the connection has it.
func sendPlain(w http.ResponseWriter, r *http.Request, f *filesystem.File) error {
	h := w.Header()
	h.Set("Accept-Ranges", "bytes")
	if f.Size > blockSize || r.Method == http.MethodHead {
		h.Set("Etag", f.ETag())
		h.Set("Content-Length", strconv.FormatInt(f.Size, 10))
		if r.Method == http.MethodHead {
			return nil
		}
		_, err := io.CopyN(w, f.File, f.Size)
		return sent(f, err)
	}
	block := blocks.Get().(*[blockSize]byte)
	defer blocks.Put(block)
	contents, err := readWhole(f, block)
	if err != nil {
		return err
	}
	return sendWhole(w, contents, f.ETag())
}

// readWhole reads a file of at most a block, however short it got meanwhile.
func readWhole(f *filesystem.File, block *[blockSize]byte) ([]byte, error) {
	n, err := io.ReadFull(f.File, block[:f.Size])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		f.Size, err = int64(n), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Path, err)
	}
	return block[:n], nil
}

// sendWhole sends a body that is known to its end.
func sendWhole(w http.ResponseWriter, body []byte, etag string) error {
	w.Header().Set("Etag", etag)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if _, err := w.Write(body); err != nil {
		return cutOffError{err}
	}
	return nil
}

// sent is err of sending the contents of f, as the response has promised them.
func sent(f *filesystem.File, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("%s got shorter while it was read", f.Path)
	}
	return cutOffError{err}
}

// sendGenerated sends what the kernel makes up while it is read, to its end.
// Some of it comes in pieces and without end.
func sendGenerated(w http.ResponseWriter, r *http.Request, f *filesystem.File, c coding, plain bool) error {
	if r.Method == http.MethodHead {
		return nil // without waiting for a first byte
	}
	// A read that waits for the kernel's news must not outlive the client.
	stop := context.AfterFunc(r.Context(), func() { _ = f.Close() })
	defer stop()
	block := blocks.Get().(*[blockSize]byte)
	defer blocks.Put(block)
	n, err := f.Read(block[:])
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", f.Path, err)
	}
	if c != identity && plain && !shrinks(n, encodedSize(c, block[:n])) {
		c = identity
	}
	if c != identity {
		w.Header().Set("Content-Encoding", string(c))
	}
	enc := encode(w, c)
	defer enc.release()
	for err == nil {
		if _, err = enc.Write(block[:n]); err == nil {
			n, err = readOn(f, block[:], func() error {
				return errors.Join(enc.Flush(), http.NewResponseController(w).Flush())
			})
		}
	}
	if errors.Is(err, io.EOF) {
		err = enc.Close()
	}
	if err != nil {
		return cutOffError{err}
	}
	return nil
}

// lull is how long a generated file may keep what was read before it waiting.
const lull = 5 * time.Millisecond

// readOn reads from f. If there is nothing to read for a while, it calls flush.
func readOn(f *filesystem.File, p []byte, flush func() error) (int, error) {
	// Where a file cannot wait this fails, and is not needed.
	_ = f.SetReadDeadline(time.Now().Add(lull))
	n, err := f.Read(p)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err //nolint:wrapcheck // io.EOF among them
	}
	if err := flush(); err != nil {
		return 0, err
	}
	_ = f.SetReadDeadline(time.Time{})
	return f.Read(p) //nolint:wrapcheck // io.EOF among them
}
