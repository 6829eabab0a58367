package process

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// StartKind classifies why a program did not start.
type StartKind uint8

// The kinds of start errors.
const (
	Invalid    StartKind = iota + 1 // the request makes no sense
	NoCommand                       // there is no such program
	Permission                      // the user may not
	Exhausted                       // a limit of the system was met
	Unmet                           // the system lacks what was asked for
	Internal                        // anything else
)

// StartError tells why a program did not start. Its text never contains the
// words "not found", which clients take for an unknown process.
type StartError struct {
	Kind StartKind
	Text string
	Err  error // cause, may be nil
}

func (e *StartError) Error() string {
	if e.Err == nil {
		return e.Text
	}
	return e.Text + ": " + e.Err.Error()
}

func (e *StartError) Unwrap() error { return e.Err }

// find looks the program up as execvp(3) does: a name with a slash is a path,
// relative to Dir; another one is searched in PATH. It answers what to exec.
func (s *Spec) find() (string, error) {
	if strings.ContainsRune(s.Name, '/') {
		return s.Name, s.runnable(s.Name)
	}
	var refused error
	for _, dir := range filepath.SplitList(s.lookup("PATH")) {
		if dir == "" {
			dir = "."
		}
		path := filepath.Join(dir, s.Name)
		if !filepath.IsAbs(path) {
			path = "./" + path // exec takes it from Dir, not from PATH
		}
		err := s.runnable(path)
		if err == nil {
			return path, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			refused = err
		}
	}
	if refused != nil {
		return "", refused
	}
	return "", &StartError{Kind: NoCommand, Text: fmt.Sprintf("no such command: %q is not in PATH", s.Name)}
}

// runnable tells early what exec would refuse. It looks at the file alone:
// whether the user can get there, exec itself finds out.
func (s *Spec) runnable(path string) error {
	abs := path
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(s.Dir, abs)
	}
	var st unix.Stat_t
	switch err := unix.Stat(abs, &st); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return &StartError{Kind: NoCommand, Text: fmt.Sprintf("no such command: %s", path), Err: err}
	case err != nil:
		return &StartError{Kind: Invalid, Text: fmt.Sprintf("command %s", path), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || !s.mayExecute(&st) {
		return &StartError{
			Kind: Permission, Err: unix.EACCES,
			Text: fmt.Sprintf("not executable: %s", path),
		}
	}
	return nil
}

// mayExecute judges by the mode alone, as the kernel does without ACLs; root
// needs any execute bit.
func (s *Spec) mayExecute(st *unix.Stat_t) bool {
	bits := st.Mode & 0o111
	if s.User.UID == 0 {
		return bits != 0
	}
	if st.Uid == s.User.UID {
		return bits&0o100 != 0
	}
	if st.Gid == s.User.GID || slices.Contains(s.User.Groups, st.Gid) {
		return bits&0o010 != 0
	}
	return bits&0o001 != 0
}

// checkDir tells early what chdir would refuse.
func (s *Spec) checkDir() error {
	var st unix.Stat_t
	switch err := unix.Stat(s.Dir, &st); {
	case errors.Is(err, unix.ENOENT):
		return &StartError{Kind: Invalid, Text: fmt.Sprintf("cwd %s does not exist", s.Dir), Err: err}
	case err != nil:
		return &StartError{Kind: Invalid, Text: fmt.Sprintf("cwd %s", s.Dir), Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return &StartError{Kind: Invalid, Text: fmt.Sprintf("cwd %s is not a directory", s.Dir), Err: unix.ENOTDIR}
	}
	return nil
}

// startError makes sense of what the reaper's Start returned.
func (s *Spec) startError(path string, err error) error {
	kind, text := Internal, "start "+path
	switch {
	case errors.Is(err, unix.ENOENT):
		// The file is there: what is missing is its interpreter.
		kind, text = NoCommand, fmt.Sprintf("no such command: interpreter of %s", path)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		kind, text = Permission, fmt.Sprintf("not executable: %s", path)
		// chdir comes after the change of user.
		if !s.mayEnterDir() {
			text = fmt.Sprintf("cwd %s is forbidden to the user", s.Dir)
		}
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.ELIBBAD):
		kind, text = Invalid, fmt.Sprintf("bad executable format: %s", path)
	case errors.Is(err, unix.E2BIG):
		kind, text = Invalid, "argument list and environment too long"
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL):
		kind = Invalid
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		kind, text = Exhausted, "too many processes, or out of memory, to start "+path
	case errors.Is(err, unix.ETXTBSY):
		kind, text = Unmet, fmt.Sprintf("program is being written: %s", path)
	}
	return &StartError{Kind: kind, Text: text, Err: err}
}

// mayEnterDir judges by the modes on the way to Dir. It only chooses between
// two error texts.
func (s *Spec) mayEnterDir() bool {
	for dir := filepath.Clean(s.Dir); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if unix.Stat(dir, &st) != nil || s.User.UID != 0 && !s.mayExecute(&st) {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}
