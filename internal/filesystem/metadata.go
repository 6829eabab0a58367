package filesystem

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// metadataPrefix is where metadata lives among a file's extended attributes.
const metadataPrefix = "user.e2b."

// Limits of the wire contract, in bytes. A key with its prefix fills the
// kernel's 255 bytes for a name (XATTR_NAME_MAX); all of them together, prefixes
// counted, are what an ext4 filesystem with 4 KiB blocks could take at most.
const (
	maxMetadataKey   = 255 - len(metadataPrefix)
	maxMetadataBytes = 4096
)

// Metadata are the words that clients attach to a file, by key.
type Metadata map[string]string

// Validate says what is wrong with m, as ErrInvalid.
func (m Metadata) Validate() error {
	total := 0
	for key, value := range m {
		switch {
		case key == "":
			return fmt.Errorf("%w: metadata with an empty key", ErrInvalid)
		case len(key) > maxMetadataKey:
			return fmt.Errorf("%w: metadata key of %d bytes, at most %d", ErrInvalid, len(key), maxMetadataKey)
		case !printable(key):
			return fmt.Errorf("%w: metadata key %q is not printable ASCII", ErrInvalid, key)
		case !printable(value):
			return fmt.Errorf("%w: metadata value of %q is not printable ASCII", ErrInvalid, key)
		}
		total += len(metadataPrefix) + len(key) + len(value)
	}
	if total > maxMetadataBytes {
		return fmt.Errorf("%w: metadata of %d bytes, at most %d", ErrInvalid, total, maxMetadataBytes)
	}
	return nil
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

// readMetadata is the metadata of the file name in dirfd, nil where there is
// none or it cannot be read. Attributes that no client can have set are left out: they
// would not fit into an answer.
func readMetadata(x *linux.Xattrs, dirfd int, name string) Metadata {
	var m Metadata
	_ = x.Each(dirfd, name, func(attribute string) error {
		key, ok := strings.CutPrefix(attribute, metadataPrefix)
		if !ok || key == "" || !printable(key) {
			return nil
		}
		value, err := x.Value(dirfd, name, attribute)
		if err != nil || !printable(string(value)) {
			return nil //nolint:nilerr // it was removed meanwhile
		}
		if m == nil {
			m = make(Metadata)
		}
		m[key] = string(value)
		return nil
	})
	return m
}

// clearMetadata removes all metadata of the open file fd.
func clearMetadata(fd int) error {
	// Few files have any attributes: ask for no more than that first.
	if n, err := unix.Flistxattr(fd, nil); n == 0 && err == nil {
		return nil
	}
	var x linux.Xattrs
	return x.Each(fd, "", func(name string) error {
		if !strings.HasPrefix(name, metadataPrefix) {
			return nil
		}
		err := unix.Fremovexattr(fd, name)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		return err
	})
}

// addMetadata sets m on the open file fd and answers what was kept: a filesystem
// without attributes keeps none, which is no error.
func addMetadata(fd int, m Metadata) (kept Metadata, err error) {
	for key, value := range m {
		err := unix.Fsetxattr(fd, metadataPrefix+key, []byte(value), 0)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if len(m) == 0 {
		return nil, nil
	}
	return m, nil
}
