package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/reap"
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
	text := e.Text
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	// A path or a name may contain them.
	return strings.ReplaceAll(text, "not found", "not-found")
}

func (e *StartError) Unwrap() error { return e.Err }

// find looks the program up as execvp(3) does: a name with a slash is a path,
// relative to Dir; another one is searched in PATH. It answers what to exec.
func (s *Spec) find() (string, error) {
	if strings.ContainsRune(s.Name, '/') {
		return s.Name, nil // exec has the last word
	}
	var refused error
	forbidden := ""
	for _, dir := range filepath.SplitList(s.lookup("PATH")) {
		if dir == "" {
			dir = "."
		}
		path := filepath.Join(dir, s.Name)
		if !filepath.IsAbs(path) {
			path = "./" + path // exec takes it from Dir, not from PATH
		}
		switch err := s.runnable(path); {
		case err == nil && (s.User.UID == 0 || s.mayEnter(s.abs(dir))):
			return path, nil
		case err == nil && forbidden == "":
			forbidden = path
		case errors.Is(err, fs.ErrPermission):
			refused = err
		}
	}
	if forbidden != "" {
		return forbidden, nil // exec has the last word
	}
	if refused != nil {
		return "", refused
	}
	return "", &StartError{Kind: NoCommand, Text: fmt.Sprintf("no such command: %q is not in PATH", s.Name)}
}

// runnable tells what exec refuses. It looks at the file alone: whether the user
// can get there, exec itself finds out.
func (s *Spec) runnable(path string) error {
	var st unix.Stat_t
	switch err := unix.Stat(s.abs(path), &st); {
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

// abs is path as the program sees it.
func (s *Spec) abs(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.Dir, path)
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

// checkDir tells what chdir refuses.
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

// refusals are how the kernel refuses a directory or a program that it has found to
// be wrong.
var refusals = []error{unix.ENOENT, unix.EACCES, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG}

// startError makes sense of what the reaper's Start returned. The directory and
// the program are not looked at before: mostly nothing is wrong with them, and
// on a file system that does not answer the look would never end. Where one of
// them was refused, something has answered.
func (s *Spec) startError(path string, err error) error {
	kind, text := Internal, "start "+path
	if e, ok := errors.AsType[*StartError](err); ok {
		return e
	}
	if slices.ContainsFunc(refusals, func(refusal error) bool { return errors.Is(err, refusal) }) {
		if e := s.checkDir(); e != nil {
			return e
		}
		if e := s.runnable(path); e != nil {
			return e
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		// The file is there: what is missing is its interpreter.
		kind, text = NoCommand, fmt.Sprintf("no such command: interpreter of %s", path)
	case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
		kind, text = Permission, fmt.Sprintf("the daemon is not root and cannot run programs as uid %d", s.User.UID)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		kind, text = Permission, fmt.Sprintf("not executable: %s", path)
		// chdir comes after the change of user.
		if !s.mayEnter(s.Dir) {
			text = fmt.Sprintf("cwd %s is forbidden to the user", s.Dir)
		}
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.ELIBBAD):
		kind, text = Invalid, fmt.Sprintf("bad executable format: %s", path)
	case errors.Is(err, unix.E2BIG):
		kind, text = Invalid, "argument list and environment too long"
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL):
		kind = Invalid
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE),
		errors.Is(err, unix.EBADF): // of dup3(2), in the child, for a number past the limit
		kind, text = Exhausted, "too many processes, or out of memory, to start "+path
	case errors.Is(err, reap.ErrStuck):
		kind, text = Unmet, fmt.Sprintf("%s does not get to run: its file system does not answer, or its cgroup is frozen", path)
	case errors.Is(err, unix.ETXTBSY):
		kind, text = Unmet, fmt.Sprintf("program is being written: %s", path)
	}
	return &StartError{Kind: kind, Text: text, Err: err}
}

// mayEnter judges by the modes on the way to dir, which is absolute. The kernel
// knows better: this chooses between candidates and between error texts.
func (s *Spec) mayEnter(dir string) bool {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if unix.Stat(dir, &st) != nil || s.User.UID != 0 && !s.mayExecute(&st) {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}
