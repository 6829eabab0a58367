package reap

import (
	"os"
	"strings"

	"github.com/wrenn/envd/internal/linux"
)

// score lends the children's oom_score_adj to the daemon for the length of a
// fork by forkExec, so that the child is born with it: written from outside after
// the start, it comes too late for grandchildren. For that moment the daemon is
// as eligible as any command, and the kernel picks the largest of them. The
// machine's init is never picked and simply keeps the children's score.
//
// Methods are called under the reaper's lock. Without a file they do nothing:
// that is a system that does not let us write it.
type score struct {
	file     *os.File
	own      []byte // what the daemon has outside of forks
	children []byte
}

// openScore never fails: without the file, children inherit the daemon's own.
func openScore() *score {
	f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_RDWR, 0)
	if err != nil {
		return &score{}
	}
	var buf [16]byte
	n, err := f.ReadAt(buf[:], 0)
	if n == 0 && err != nil {
		_ = f.Close()
		return &score{}
	}
	s := &score{
		file:     f,
		own:      []byte(strings.TrimSpace(string(buf[:n]))),
		children: []byte(childScore),
	}
	if linux.MachineInit() {
		s.own = s.children
		s.lend()
	}
	return s
}

func (s *score) lend()    { s.write(true) }
func (s *score) restore() { s.write(false) }

func (s *score) write(lent bool) {
	if s.file == nil {
		return
	}
	v := s.own
	if lent {
		v = s.children
	}
	// Without CAP_SYS_RESOURCE the way back down may be refused. Then the
	// daemon stays at the children's score, and nothing else changes.
	_, _ = s.file.WriteAt(v, 0)
}

func (s *score) close() error {
	if s == nil || s.file == nil {
		return nil // nothing was started
	}
	return s.file.Close()
}
