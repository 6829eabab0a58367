package api

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/wrenn/envd/internal/filesystem"
)

const (
	// samples are taken of a file of manySamples bytes or more to see whether it
	// shrinks, and one of a smaller one.
	samples     = 3
	manySamples = 1 << 20
	// worthwhile is the share, in sixteenths, that may be left of a file for
	// compression to be worth its time.
	worthwhile = 15
	// maxEncoders is how many encoders run at a time before files go as they
	// are, where that is acceptable: each takes a MiB or so, and a client may
	// hold one for as long as it likes.
	maxEncoders = 32
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

// encoders counts those that are in use.
var encoders atomic.Int32

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
		encoders.Add(1)
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
		encoders.Add(-1)
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

// encodedSize is how much p takes in coding c.
func encodedSize(c coding, p []byte) int {
	var n counter
	e := encode(&n, c)
	defer e.release()
	_, _ = e.Write(p) // a counter does not fail
	_ = e.Close()
	return int(n)
}

// shrinks tells whether compression that left after of before was worth it.
func shrinks(before, after int) bool { return after*16 <= before*worthwhile }

var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// sendEncoded sends f in coding c. Where plain is acceptable, a file that does
// not shrink goes as it is.
func sendEncoded(w http.ResponseWriter, r *http.Request, f *filesystem.File, c coding, plain bool) error {
	h := w.Header()
	block := blocks.Get().(*[blockSize]byte)
	defer blocks.Put(block)
	if f.Size > blockSize {
		if plain && (encoders.Load() >= maxEncoders || !sampleShrinks(f, c, block)) {
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
	if plain && !shrinks(len(contents), body.Len()) {
		h.Set("Accept-Ranges", "bytes")
		return sendWhole(w, contents, f.ETag())
	}
	h.Set("Content-Encoding", string(c))
	return sendWhole(w, body.Bytes(), encodedETag(f))
}

// encodedETag is the tag of what was made from f: equal in meaning, not in
// bytes.
func encodedETag(f *filesystem.File) string { return "W/" + f.ETag() }

// sampleShrinks looks at a few blocks of f: whole ones, since the encoders judge
// less of a file differently. It uses block.
func sampleShrinks(f *filesystem.File, c coding, block *[blockSize]byte) bool {
	n := int64(1)
	if f.Size >= manySamples {
		n = samples
	}
	before, after := 0, 0
	for i := range n {
		// The middles of n parts. What cannot be read is found out later.
		m, _ := f.ReadAt(block[:], (2*i+1)*f.Size/(2*n)-blockSize/2)
		before += m
		after += encodedSize(c, block[:m])
	}
	return shrinks(before, after)
}
