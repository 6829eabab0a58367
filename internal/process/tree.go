package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// markName is the environment variable that marks the processes of a command
// where there are no cgroups.
const markName = "ENVD_COMMAND"

// stopLimit bounds stopping what is to be killed without cgroups. What forks
// faster than we look is killed running.
const stopLimit = killLimit / 2

// tree names a command and everything it started, where no cgroup does. Its
// members are the leader, who is in the leader's session, who carries the mark
// in the environment, and the descendants of all these. A process that has shed
// all three (double fork, setsid, cleared environment) has escaped.
type tree struct {
	leader int
	// gone tells whether the leader was reaped: its number may be another's
	// then. It is asked after the processes were listed.
	gone func() bool
	mark string
}

// taskID names a process for good.
type taskID struct {
	pid     int
	started string // in clock ticks since boot: tells reused pids apart
}

// task is a process as /proc shows it.
type task struct {
	taskID

	parent, session int
	zombie          bool
}

// killTree kills the members of t and returns how many there were. They are
// all stopped first, so that none forks away from under the killing.
func killTree(t tree) (killed int, err error) {
	began := time.Now()
	seen := make(map[taskID]bool)
	for fresh := true; fresh && time.Since(began) < stopLimit; {
		fresh = false
		for _, m := range t.members(scan()) {
			if !seen[m.taskID] {
				fresh, seen[m.taskID] = true, true
				_ = m.signal(unix.SIGSTOP) // the kill will show what is wrong
			}
		}
	}
	for time.Since(began) < killLimit {
		left := t.members(scan())
		if len(left) == 0 {
			return len(seen), nil
		}
		for _, m := range left {
			seen[m.taskID] = true
			if err := m.signal(unix.SIGKILL); err != nil {
				return len(seen), err
			}
		}
		time.Sleep(time.Millisecond) // death takes a moment
	}
	return len(seen), fmt.Errorf("kill tree of %d: members left after %v", t.leader, killLimit)
}

// signal signals the task unless its pid is another's by now.
func (k task) signal(sig unix.Signal) error {
	fd, err := linux.OpenPidfd(k.pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if now, ok := readTask(k.pid); !ok || now.started != k.started {
		return nil
	}
	if err := linux.SignalPidfd(fd, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// members picks the living members of t from all.
func (t tree) members(sys *snapshot) []task {
	all := sys.tasks
	in := make(map[int]bool)
	_, exists := all[t.leader]
	leaderGone := t.gone()
	if !leaderGone && exists {
		in[t.leader] = true
	}
	// The kernel does not reuse a number while it names a session. A process
	// with the number of a leader that is gone means that the session is, too.
	sessionValid := !leaderGone || !exists
	for pid, k := range all {
		if sessionValid && k.session == t.leader || t.mark != "" && sys.mark(pid) == t.mark {
			in[pid] = true
		}
	}
	delete(in, os.Getpid())
	for grown := true; grown; {
		grown = false
		for pid, k := range all {
			if !in[pid] && in[k.parent] && pid != os.Getpid() {
				in[pid], grown = true, true
			}
		}
	}
	var members []task
	for pid := range in {
		if !all[pid].zombie {
			members = append(members, all[pid])
		}
	}
	return members
}

// snapshot is the process table at one moment. One goroutine uses it.
type snapshot struct {
	tasks map[int]task
	marks map[int]string // of those looked at
}

// scan reads the process table.
func scan() *snapshot {
	s := &snapshot{tasks: make(map[int]task), marks: make(map[int]string)}
	dir, err := os.Open("/proc")
	if err != nil {
		return s
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if k, ok := readTask(pid); ok {
				s.tasks[pid] = k
			}
		}
	}
	return s
}

// mark answers the mark that pid was started with, or "".
func (s *snapshot) mark(pid int) string {
	if m, ok := s.marks[pid]; ok {
		return m
	}
	env, _ := os.ReadFile(procFile(pid, "environ")) // gone or a kernel thread: no mark
	m := findMark(env)
	s.marks[pid] = m
	return m
}

// isMark tells whether an environment variable is a mark: ours, or one that a
// daemon above us set.
func isMark(kv string) bool { return strings.HasPrefix(kv, markName+"=") }

// findMark finds the mark in an environment of NUL-terminated strings.
func findMark(env []byte) string {
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if m, ok := bytes.CutPrefix(kv, []byte(markName+"=")); ok {
			return string(m)
		}
	}
	return ""
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

func readTask(pid int) (task, bool) {
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return task{}, false
	}
	return parseStat(pid, string(b))
}

// parseStat reads /proc/pid/stat (proc_pid_stat(5)). The command name, in
// parentheses, may itself hold parentheses and spaces.
func parseStat(pid int, s string) (task, bool) {
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return task{}, false
	}
	f := strings.Fields(s[i+1:]) // from field 3, the state, on
	if len(f) < 20 {
		return task{}, false
	}
	parent, err1 := strconv.Atoi(f[1])
	session, err2 := strconv.Atoi(f[3])
	if err1 != nil || err2 != nil {
		return task{}, false
	}
	dead := f[0] == "Z" || f[0] == "X"
	return task{taskID: taskID{pid: pid, started: f[19]}, parent: parent, session: session, zombie: dead}, true
}
