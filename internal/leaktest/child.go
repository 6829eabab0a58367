package leaktest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// children returns the child processes of all threads, zombies included.
func children() (snapshot, error) {
	// proc(5), /proc/pid/task/tid/children: there with CONFIG_PROC_CHILDREN.
	const pattern = "/proc/self/task/*/children"
	lists, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	if len(lists) == 0 {
		return nil, fmt.Errorf("list children: no %s", pattern)
	}
	found := snapshot{}
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended, and its children are another's
		}
		for _, pid := range strings.Fields(string(pids)) {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			switch {
			case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
				continue // reaped since
			case err != nil:
				return nil, err
			}
			id, text, err := parseStat(string(stat))
			if err != nil {
				return nil, err
			}
			// Empty for a zombie; the name in text will do.
			args, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			found[id] = text + strings.TrimRight(" "+strings.ReplaceAll(string(args), "\x00", " "), " ")
		}
	}
	return found, nil
}

// parseStat tells from /proc/pid/stat which process it is, by its pid and the
// time it was started at, and what a person wants to know of it.
func parseStat(stat string) (id, text string, err error) {
	// proc(5), /proc/pid/stat: pid (comm) state ppid ... The comm may hold any
	// character, so the fields after it are counted from the last parenthesis.
	pid, rest, _ := strings.Cut(stat, " (")
	i := strings.LastIndexByte(rest, ')')
	if i < 0 {
		return "", "", fmt.Errorf("parse stat %q", stat)
	}
	const third, startTime = 3, 22 // the manual's numbers
	fields := strings.Fields(rest[i+1:])
	if len(fields) <= startTime-third {
		return "", "", fmt.Errorf("parse stat %q", stat)
	}
	id = "child " + pid + " of " + fields[startTime-third]
	return id, fmt.Sprintf("child %s (%s) in state %s", pid, rest[:i], fields[0]), nil
}
