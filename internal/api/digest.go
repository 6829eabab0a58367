package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"hash"
	"io"
	"net/http"
	"net/textproto"
	"strings"
)

// errDigest is contents that are not those the client announced.
var errDigest = errors.New("contents do not match the digest")

// digestHeaders are of the same bytes in a request that brings a whole file
// (RFC 9530).
var digestHeaders = [...]string{"Content-Digest", "Repr-Digest"}

// digestIn is the SHA-256 that headers announce, or nil. Other algorithms are
// passed over, as the RFC wants it.
func digestIn[H http.Header | textproto.MIMEHeader](h H) ([]byte, error) {
	var sum []byte
	for _, name := range digestHeaders {
		for _, value := range h[name] {
			found, err := parseDigest(value)
			if err != nil {
				return nil, badRequest("%s %q: %w", name, value, err)
			}
			if sum != nil && found != nil && !bytes.Equal(sum, found) {
				return nil, badRequest("%w: the digests sent differ among themselves", errDigest)
			}
			if found != nil {
				sum = found
			}
		}
	}
	return sum, nil
}

// parseDigest finds sha-256 in a dictionary of byte sequences (RFC 9651,
// sections 3.2 and 3.3.5). The last of several counts.
func parseDigest(value string) (sum []byte, err error) {
	for member := range strings.SplitSeq(value, ",") {
		key, rest, _ := strings.Cut(member, "=")
		if strings.Trim(key, " \t") != "sha-256" {
			continue
		}
		rest, _, _ = strings.Cut(rest, ";") // parameters
		rest = strings.Trim(rest, " \t")
		inner, ok := strings.CutPrefix(rest, ":")
		if ok {
			inner, ok = strings.CutSuffix(inner, ":")
		}
		if !ok {
			return nil, badRequest("sha-256 is not between colons")
		}
		// Padding may be missing (RFC 9651, section 4.2.7).
		sum, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(inner, "="))
		if err != nil {
			return nil, badRequest("sha-256 is not base64")
		}
		if len(sum) != sha256.Size {
			return nil, badRequest("sha-256 has %d bytes, not %d", len(sum), sha256.Size)
		}
	}
	return sum, nil
}

// digester is contents that end well only if their SHA-256 is the wanted one.
type digester struct {
	io.ReadCloser
	want []byte
	hash hash.Hash // nil before the first byte
}

func (d *digester) Read(p []byte) (int, error) {
	if d.hash == nil {
		d.hash = sha256.New()
	}
	n, err := d.ReadCloser.Read(p)
	d.hash.Write(p[:n])
	if err == io.EOF && !bytes.Equal(d.hash.Sum(nil), d.want) {
		err = errDigest
	}
	return n, err //nolint:wrapcheck // readers compare it
}
