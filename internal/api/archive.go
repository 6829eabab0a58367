package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/wrenn/envd/internal/filesystem"
)

// maxWindow bounds the memory that an archive may ask for to be decompressed,
// in bytes: zstd's levels below --ultra and --long stay within it.
const maxWindow = 8 << 20

// pack sends the tree below a directory.
func pack(w http.ResponseWriter, r *http.Request, v *filesystem.View, path string, a archive) error {
	resolved, err := v.User.Resolve(path)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(filepath.Base(resolved), "/")
	if name == "" {
		name = "root"
	}
	h := w.Header()
	h.Set("Content-Type", a.mediaType)
	h.Set("Content-Disposition", disposition("attachment", name+a.extension))
	if r.Method == http.MethodHead {
		return nil
	}
	out := &startedWriter{Writer: w}
	e := encode(out, a.coding)
	defer e.release()
	err = v.Pack(e, path)
	if err == nil {
		err = e.Close()
	}
	if err != nil && out.started {
		return cutOffError{err}
	}
	return err
}

// startedWriter knows whether it was written to.
type startedWriter struct {
	io.Writer
	started bool
}

func (s *startedWriter) Write(p []byte) (int, error) {
	s.started = true
	return s.Writer.Write(p) //nolint:wrapcheck // the response's own
}

var zstdReaders = sync.Pool{New: func() any {
	z, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), // the options are valid
		zstd.WithDecoderMaxWindow(maxWindow))
	return z
}}

// unpack makes what the archive src holds, below the directory of the query.
func (u *upload) unpack(w http.ResponseWriter, src io.Reader, a archive) error {
	path := u.query.Get("path")
	switch {
	case path == "":
		return badRequest("an archive needs the query parameter path: the directory to unpack it in")
	case u.atomic:
		return badRequest("an archive cannot be unpacked atomically")
	case len(u.metadata) > 0:
		return badRequest("an archive brings the metadata of its files itself")
	}
	if sum, err := digestIn(u.header); sum != nil || err != nil {
		return badRequest("the digest of an archive would be known only when it is unpacked")
	}
	switch a.coding {
	case gzipped:
		z := openGzip(src)
		defer z.release()
		src = z
	case zstded:
		z := zstdReaders.Get().(*zstd.Decoder)
		defer func() { _ = z.Reset(nil); zstdReaders.Put(z) }()
		if err := z.Reset(src); err != nil {
			return badRequest("zstd: %w", err)
		}
		src = z
	}
	if err := u.Unpack(path, src); err != nil {
		return err
	}
	// What follows the end of an archive is padding, and the checksum of the
	// compression.
	if _, err := io.Copy(io.Discard, src); err != nil {
		return fmt.Errorf("unpack: %w: %w", filesystem.ErrSource, err)
	}
	e, err := u.Stat(path)
	if err != nil {
		return err
	}
	if e.Type != filesystem.TypeDirectory {
		return errors.New("the directory was replaced while it was unpacked")
	}
	return answer(w, []written{{Path: text(e.Path), Name: text(e.Name), Type: "dir"}})
}
