package filesystem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Compose makes the file at destination the concatenation of the regular files
// at sources, in order, and removes those. The destination is seen whole,
// before or after; an existing one keeps mode and owner. Nothing is removed
// unless the destination is complete. No source, no destination, or a source
// that is the destination is ErrInvalid.
func (v *View) Compose(destination string, sources []string, m Metadata) (e Entry, err error) {
	if len(sources) == 0 {
		return Entry{}, fmt.Errorf("%w: no files to compose", ErrInvalid)
	}
	if destination, err = v.User.resolveNamed(destination); err != nil {
		return Entry{}, err
	}
	paths := make([]string, len(sources))
	for i, source := range sources {
		if paths[i], err = v.User.resolveNamed(source); err != nil {
			return Entry{}, err
		}
	}
	if err := m.Validate(); err != nil {
		return Entry{}, err
	}
	err = v.Do(func() error {
		e, err = v.compose(destination, paths, m)
		return failed("compose", destination, err)
	})
	return e, err
}

func (v *View) compose(destination string, sources []string, m Metadata) (Entry, error) {
	total, err := v.composedSize(destination, sources)
	if err != nil {
		return Entry{}, err
	}
	s, err := v.stage(destination, total, m)
	if err != nil {
		return Entry{}, err
	}
	for _, source := range sources {
		if err := s.append(v, source); err != nil {
			return Entry{}, s.discard(err)
		}
	}
	e, err := v.entryOf(s.File, destination, s.metadata)
	if err != nil {
		return Entry{}, s.discard(err)
	}
	if err := s.commit(); err != nil {
		return Entry{}, err
	}
	for _, source := range sources {
		if err := v.unlink(source); err != nil && !errors.Is(err, unix.ENOENT) {
			return Entry{}, failed("remove composed source", source, err)
		}
	}
	return e, nil
}

// unlink removes the file, or the link, at path.
func (v *View) unlink(path string) error {
	p, err := v.locate(path)
	if err != nil {
		return err
	}
	defer p.close()
	return unlinkAt(p.dir, p.name, 0)
}

// composedSize checks all sources before any is read, and adds them up.
func (v *View) composedSize(destination string, sources []string) (total int64, err error) {
	dst, missing := v.stat(destination)
	for _, source := range sources {
		st, err := v.stat(source)
		if err != nil {
			return 0, failed("compose from", source, err)
		}
		if err := checkRegular(st.Mode); err != nil {
			return 0, failed("compose from", source, err)
		}
		if source == destination || missing == nil && inodeOf(&st) == inodeOf(&dst) {
			return 0, failed("compose from", source, fmt.Errorf("%w: source is the destination", ErrInvalid))
		}
		total += st.Size
	}
	return total, nil
}

// append copies the file at path to the end of s, inside the kernel where the
// filesystem can (copy_file_range(2)).
func (s *staged) append(v *View, path string) error {
	src, err := v.openFile(path)
	if err != nil {
		return failed("compose from", path, err)
	}
	defer src.Close()
	_, err = s.ReadFrom(src.File)
	return err
}
