package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// defaultPart is UploadOptions.PartSize where none is given.
const defaultPart = 32 << 20

// ErrChanged means that a file was replaced or written while it was read.
var ErrChanged = errors.New("file changed while it was read")

// StatusError is what the daemon answered instead of what was asked for.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%d: %s", e.Status, e.Message) }

// UploadOptions say how Upload writes. The zero value is a plain upload.
type UploadOptions struct {
	// Atomic makes readers see the old contents or the new, never a part.
	Atomic bool
	// PartSize is how much of a file is sent, and verified, at a time: what a
	// broken connection costs at most, in bytes. 0 is 32 MiB.
	PartSize int64
	// Metadata replaces that of the file; keys are in lower case.
	Metadata map[string]string
}

// Upload writes src to the file at path. When src can seek, what is sent is
// verified by SHA-256 and survives broken connections: it goes from where src
// is to its end, in parts, each of which is sent again until it has arrived, or
// as a whole if it is to be atomic. A src that cannot seek is sent once.
func (c *Client) Upload(ctx context.Context, path string, src io.Reader, opts UploadOptions) error {
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	for key, value := range opts.Metadata {
		header.Set("X-Metadata-"+key, value)
	}
	query := url.Values{"path": {path}}
	if opts.Atomic {
		query.Set("atomic", "true")
	}
	seeker, ok := src.(io.ReadSeeker)
	if !ok {
		res, err := c.files(ctx, http.MethodPost, query, header, src, -1)
		return uploaded(path, closed(res, err))
	}
	start, err := seeker.Seek(0, io.SeekCurrent)
	if err != nil {
		return uploaded(path, err)
	}
	end, err := seeker.Seek(0, io.SeekEnd)
	if err != nil {
		return uploaded(path, err)
	}
	size, part := end-start, opts.PartSize
	switch {
	case opts.Atomic:
		part = size
	case part <= 0:
		part = defaultPart
	}
	for offset := int64(0); offset == 0 || offset < size; offset += part {
		n := min(part, size-offset)
		method := http.MethodPost
		if offset > 0 {
			method = http.MethodPatch
			header = http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", offset, offset+n-1, size)}}
		}
		if err := c.uploadPart(ctx, method, query, header, seeker, start+offset, n); err != nil {
			return uploaded(path, err)
		}
		if n == 0 {
			break
		}
	}
	return nil
}

func uploaded(path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("upload %s: %w", path, err)
}

// uploadPart sends n bytes of src from offset on until they have arrived.
func (c *Client) uploadPart(ctx context.Context, method string, query url.Values, header http.Header, src io.ReadSeeker, offset, n int64) error {
	if _, err := src.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.CopyN(hash, src, n); err != nil {
		return fmt.Errorf("read source: %w", err)
	}
	header.Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(hash.Sum(nil))+":")
	for try := 1; ; try++ {
		if _, err := src.Seek(offset, io.SeekStart); err != nil {
			return err
		}
		res, err := c.files(ctx, method, query, header, io.LimitReader(src, n), n)
		err = closed(res, err)
		if err == nil || !broken(ctx, err) || try > reconnects {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// Download writes the file at path to dst and answers how many bytes that were.
// When the connection breaks it continues where it stopped, or fails with
// ErrChanged if the file is another by then.
func (c *Client) Download(ctx context.Context, path string, dst io.Writer) (n int64, err error) {
	// Ranges are of the file as it is.
	header := http.Header{"Accept-Encoding": {"identity"}}
	out := &destination{Writer: dst}
	for try := 1; ; try++ {
		before := out.n
		tag, err := c.downloadOn(ctx, path, header, out)
		switch {
		case err == nil:
			return out.n, nil
		case out.err != nil || !broken(ctx, err) || try > reconnects || out.n > 0 && tag == "" && header["If-Match"] == nil:
			return out.n, fmt.Errorf("download %s: %w", path, err)
		}
		if tag != "" {
			header.Set("If-Match", tag)
		}
		if out.n > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", out.n))
		}
		if out.n > before {
			try = 0
		}
		if err := pause(ctx, try+1); err != nil {
			return out.n, err
		}
	}
}

// destination counts, and remembers its own errors: those are no reason to ask
// again.
type destination struct {
	io.Writer
	n   int64
	err error
}

func (d *destination) Write(p []byte) (int, error) {
	n, err := d.Writer.Write(p)
	d.n += int64(n)
	d.err = err
	return n, err //nolint:wrapcheck // Download wraps it
}

// downloadOn appends to out what is missing, and answers the strong tag of the
// file, if it has one.
func (c *Client) downloadOn(ctx context.Context, path string, header http.Header, out *destination) (tag string, err error) {
	at := out.n
	res, err := c.files(ctx, http.MethodGet, url.Values{"path": {path}}, header, nil, 0)
	if refused := (*StatusError)(nil); errors.As(err, &refused) {
		switch refused.Status {
		case http.StatusPreconditionFailed:
			return "", ErrChanged
		case http.StatusRequestedRangeNotSatisfiable:
			if at > 0 {
				return "", nil // it broke after the last byte
			}
		}
	}
	if err != nil {
		return "", err
	}
	defer res.Body.Close() //nolint:errcheck // read to the end, or broken
	if at > 0 && res.StatusCode != http.StatusPartialContent {
		return "", ErrChanged
	}
	_, err = io.Copy(out, res.Body)
	return res.Header.Get("ETag"), err
}

// ArchiveType is a form in which a directory travels.
type ArchiveType string

// The types of archives.
const (
	Tar     ArchiveType = "application/x-tar"
	TarGzip ArchiveType = "application/gzip"
	TarZstd ArchiveType = "application/zstd"
)

// Pack writes what is below the directory at path to dst, as an archive.
func (c *Client) Pack(ctx context.Context, path string, kind ArchiveType, dst io.Writer) error {
	res, err := c.files(ctx, http.MethodGet, url.Values{"path": {path}}, http.Header{"Accept": {string(kind)}}, nil, 0)
	if err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	defer res.Body.Close() //nolint:errcheck // read to the end, or broken
	if kind := ArchiveType(res.Header.Get("Content-Type")); kind != Tar && kind != TarGzip && kind != TarZstd {
		return fmt.Errorf("pack %s: it is no directory", path)
	}
	if _, err := io.Copy(dst, res.Body); err != nil {
		return fmt.Errorf("pack %s: %w", path, err)
	}
	return nil
}

// Unpack makes what the archive src holds, below the directory at path.
func (c *Client) Unpack(ctx context.Context, path string, kind ArchiveType, src io.Reader) error {
	res, err := c.files(ctx, http.MethodPost, url.Values{"path": {path}}, http.Header{"Content-Type": {string(kind)}}, src, -1)
	if err := closed(res, err); err != nil {
		return fmt.Errorf("unpack %s: %w", path, err)
	}
	return nil
}

// files makes a request to /files. The caller closes the body of the answer.
func (c *Client) files(ctx context.Context, method string, query url.Values, header http.Header, body io.Reader, size int64) (*http.Response, error) {
	if c.opts.User != "" {
		query.Set("username", c.opts.User)
	}
	if size == 0 && body != nil {
		body = http.NoBody // else net/http takes 0 for unknown
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/files?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	req.Header = header.Clone()
	req.ContentLength = size
	if c.opts.Token != "" {
		req.Header.Set("X-Access-Token", c.opts.Token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err //nolint:wrapcheck // the callers do
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close() //nolint:errcheck // nothing of it is needed
	text, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	return nil, refused(res.StatusCode, text)
}

// refused is the error that an answer with that body stands for.
func refused(status int, body []byte) *StatusError {
	var answer struct{ Message string }
	if json.Unmarshal(body, &answer) == nil && answer.Message != "" {
		return &StatusError{Status: status, Message: answer.Message}
	}
	return &StatusError{Status: status, Message: fmt.Sprintf("%.1000s", bytes.TrimSpace(body))}
}

// closed reads an answer that says no more than that it went well.
func closed(res *http.Response, err error) error {
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return errors.Join(err, res.Body.Close())
}

// broken tells a connection that broke from an answer, and from an end that we
// wanted.
func broken(ctx context.Context, err error) bool {
	refused := (*StatusError)(nil)
	return ctx.Err() == nil && !errors.As(err, &refused) && !errors.Is(err, ErrChanged)
}

// pause lies between two tries; before the second there is none.
func pause(ctx context.Context, try int) error {
	if try <= 1 {
		return nil
	}
	select {
	case <-time.After(reconnectPause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
