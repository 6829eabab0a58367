package api

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/wrenn/envd/internal/filesystem"
)

const (
	// samples are taken of a file to see whether it shrinks, spread evenly.
	samples    = 3
	sampleSize = 16 << 10 // bytes
	// worthwhile is the share, in sixteenths, that may be left of a file for
	// compression to be worth its time.
	worthwhile = 15
	// zstdWindow bounds what an encoder keeps, in bytes: at the fastest level
	// more gains little.
	zstdWindow = 512 << 10
)

// compressor is what gzip and zstd writers have in common.
type compressor interface {
	io.WriteCloser
	Flush() error
	Reset(w io.Writer)
}

// Compressors at their fastest. One takes up to 2 MiB; the garbage collector
// frees those that are not in use.
var (
	gzipWriters = sync.Pool{New: func() any {
		w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
		return w
	}}
	zstdWriters = sync.Pool{New: func() any {
		w, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), // the options are valid
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
		return w
	}}
	// What goes out in pieces is gathered: each write is a chunk, and each
	// chunk is system calls.
	outputs = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, blockSize) }}
)

func compressors(c coding) *sync.Pool {
	if c == zstded {
		return &zstdWriters
	}
	return &gzipWriters
}

// encoder writes its input in a coding to an output. release ends it.
type encoder struct {
	coding coding
	out    *bufio.Writer
	comp   compressor // nil for identity
}

// encode makes an encoder that writes to w.
func encode(w io.Writer, c coding) *encoder {
	e := &encoder{coding: c, out: outputs.Get().(*bufio.Writer)}
	e.out.Reset(w)
	if c != identity {
		e.comp = compressors(c).Get().(compressor)
		e.comp.Reset(e.out)
	}
	return e
}

func (e *encoder) Write(p []byte) (int, error) {
	if e.comp == nil {
		return e.out.Write(p) //nolint:wrapcheck // the response's own
	}
	return e.comp.Write(p) //nolint:wrapcheck // the response's own
}

// Flush writes what was given so far.
func (e *encoder) Flush() error {
	if e.comp != nil {
		if err := e.comp.Flush(); err != nil {
			return err //nolint:wrapcheck // the response's own
		}
	}
	return e.out.Flush() //nolint:wrapcheck // the response's own
}

// Close ends the coding: without it the output is not whole.
func (e *encoder) Close() error {
	if e.comp != nil {
		if err := e.comp.Close(); err != nil {
			return err //nolint:wrapcheck // the response's own
		}
	}
	return e.out.Flush() //nolint:wrapcheck // the response's own
}

// release gives the buffers back, whether or not e was closed.
func (e *encoder) release() {
	if e.comp != nil {
		e.comp.Reset(nil)
		compressors(e.coding).Put(e.comp)
	}
	e.out.Reset(nil)
	outputs.Put(e.out)
}

// counter counts what it is given.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// shrinks tells whether the parts together get smaller enough in coding c.
func shrinks(c coding, parts ...[]byte) bool {
	var before int
	var after counter
	e := encode(&after, c)
	defer e.release()
	for _, part := range parts {
		before += len(part)
		_, _ = e.Write(part) // a counter does not fail
	}
	_ = e.Close()
	return int(after)*16 <= before*worthwhile
}

var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// sendEncoded sends f in coding c. Where plain is acceptable, a file that does
// not shrink goes as it is.
func sendEncoded(w http.ResponseWriter, r *http.Request, f *filesystem.File, c coding, plain bool) error {
	h := w.Header()
	block := blocks.Get().(*[blockSize]byte)
	defer blocks.Put(block)
	if f.Size > blockSize {
		if plain && !sampleShrinks(f, c, block) {
			return sendPlain(w, r, f)
		}
		h.Set("Content-Encoding", string(c))
		h.Set("Etag", encodedETag(f))
		if r.Method == http.MethodHead {
			return nil
		}
		e := encode(w, c)
		defer e.release()
		n, err := io.CopyBuffer(e, io.LimitReader(f.File, f.Size), block[:])
		if err == nil && n < f.Size {
			err = io.EOF
		}
		if err == nil {
			err = e.Close()
		}
		return sent(f, err)
	}

	contents, err := readWhole(f, block)
	if err != nil {
		return err
	}
	body := bodies.Get().(*bytes.Buffer)
	defer bodies.Put(body)
	body.Reset()
	e := encode(body, c)
	defer e.release()
	_, _ = e.Write(contents) // memory does not fail
	_ = e.Close()
	if plain && body.Len()*16 > len(contents)*worthwhile {
		h.Set("Accept-Ranges", "bytes")
		return sendWhole(w, contents, f.ETag())
	}
	h.Set("Content-Encoding", string(c))
	return sendWhole(w, body.Bytes(), encodedETag(f))
}

// encodedETag is the tag of what was made from f: equal in meaning, not in
// bytes.
func encodedETag(f *filesystem.File) string { return "W/" + f.ETag() }

// sampleShrinks looks at a few places of f.
func sampleShrinks(f *filesystem.File, c coding, block *[blockSize]byte) bool {
	var parts [samples][]byte
	for i := range parts {
		part := block[i*sampleSize:][:sampleSize]
		n, _ := f.ReadAt(part, int64(i)*(f.Size-sampleSize)/(samples-1)) // what cannot be read is found out later
		parts[i] = part[:n]
	}
	return shrinks(c, parts[:]...)
}
