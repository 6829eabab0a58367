package process

import (
	"fmt"
	"strings"
	"time"

	"github.com/wrenn/envd/internal/cgroup"
	"github.com/wrenn/envd/internal/reap"
)

// Size is the size of a terminal, in characters.
type Size struct {
	Cols, Rows uint16
}

// Credential is who a process runs as.
type Credential = reap.Credential

// Limits bound a process and its descendants together; 0 is no limit.
type Limits = cgroup.Limits

// Spec says what to run. Nothing in it is looked up later or filled in.
type Spec struct {
	// Name is the program as the caller wrote it. It becomes argv[0] and is
	// looked up in the PATH of Env, as the shell does.
	Name string
	Args []string // without argv[0]
	Env  []string
	Dir  string // absolute
	User Credential

	Terminal *Size // nil: pipes
	Stdin    bool  // without a terminal: a pipe rather than /dev/null
	Tag      string
	HasTag   bool
	// Timeout bounds the leader's running time; 0 is no bound.
	Timeout time.Duration
	Limits  Limits

	// Label is what the caller wants to see again in a listing. The package
	// does not look at it. It takes LabelCost bytes, and is kept as the output is.
	Label     any
	LabelCost int
}

func (s *Spec) class() cgroup.Class {
	if s.Terminal != nil {
		return cgroup.PTY
	}
	return cgroup.User
}

// maxTag bounds a tag, in bytes: it is kept as long as the process, and does not
// count against Config.Total.
const maxTag = 4 << 10

// validate finds what no system call may be asked.
func (s *Spec) validate() error {
	if s.Name == "" {
		return &StartError{Kind: Invalid, Text: "empty command"}
	}
	if len(s.Tag) > maxTag {
		return &StartError{Kind: Invalid, Text: fmt.Sprintf("tag of %d bytes, at most %d are kept", len(s.Tag), maxTag)}
	}
	for _, v := range [][]string{{s.Name, s.Dir, s.Tag}, s.Args, s.Env} {
		for _, str := range v {
			if strings.ContainsRune(str, 0) {
				return &StartError{Kind: Invalid, Text: "NUL byte in command, argument, environment, directory or tag"}
			}
		}
	}
	for _, kv := range s.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return &StartError{Kind: Invalid, Text: "environment variable without a name"}
		}
	}
	return nil
}

// lookup finds the value of a variable in Env; the last one wins.
func (s *Spec) lookup(name string) string {
	value := ""
	for _, kv := range s.Env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value = v
		}
	}
	return value
}
