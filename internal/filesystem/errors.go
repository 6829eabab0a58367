package filesystem

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// What callers tell apart, beside fs.ErrNotExist, fs.ErrExist (also: a
// directory that is not empty) and fs.ErrPermission (also: a read-only
// filesystem).
var (
	// ErrInvalid is an argument that no state of the filesystem would make
	// right: a path that cannot be one, bad metadata, an empty list.
	ErrInvalid = errors.New("invalid argument")

	ErrIsDirectory  = errors.New("is a directory")
	ErrNotDirectory = errors.New("not a directory")

	// ErrNotRegular is a FIFO, socket or device where contents were asked for.
	ErrNotRegular = errors.New("not a regular file")

	// ErrNoSpace is a full disk, inodes included, or a used-up quota.
	ErrNoSpace = errors.New("no space left")

	// ErrOffsetPastEnd is a resumed write that would leave a hole.
	ErrOffsetPastEnd = errors.New("offset lies past the end of the file")

	// ErrMoved is a file that is not where the kernel says it is: it is replaced
	// all the time, or is in another mount namespace.
	ErrMoved = errors.New("file keeps moving, or is in another mount namespace")

	// ErrSource is a source of contents that broke off; it comes with the
	// source's own error.
	ErrSource = errors.New("read contents")

	// ErrArchive is an archive, or an entry of one, that is not unpacked.
	ErrArchive = errors.New("unusable archive")
)

// failed is err of the operation op on path, or nil.
func failed(op, path string, err error) error {
	if err == nil {
		return nil
	}
	// The standard library's errors say open, mkdirat, unlinkat; which of
	// those it was matters less than what the caller asked for. Only the
	// outermost: a source of contents may have one of its own inside.
	inner := &fs.PathError{}
	if errors.As(err, &inner) {
		path, err = inner.Path, inner.Err
	}
	return &fs.PathError{Op: op, Path: path, Err: classify(err)}
}

// belowFile is err of looking a path up, where one that leads through a file
// is as missing as any other.
func belowFile(err error) error {
	if errors.Is(err, unix.ENOTDIR) {
		return unix.ENOENT
	}
	return err
}

// classify adds the sentinel that err stands for.
func classify(err error) error {
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		return err
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return kindError{ErrNoSpace, err}
	case unix.EISDIR:
		return kindError{ErrIsDirectory, err}
	case unix.ENOTDIR:
		return kindError{ErrNotDirectory, err}
	case unix.ENAMETOOLONG, unix.ELOOP:
		return kindError{ErrInvalid, err}
	case unix.EROFS:
		return kindError{fs.ErrPermission, err}
	}
	return err
}

// kindError is cause, which is also of a kind. It reads like its cause.
type kindError struct {
	kind, cause error
}

func (e kindError) Error() string   { return e.cause.Error() }
func (e kindError) Unwrap() []error { return []error{e.kind, e.cause} }
