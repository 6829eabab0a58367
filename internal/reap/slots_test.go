package reap

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/leaktest"
)

// What a child is given lies low however many descriptors are open, and is let go
// of after the start.
func TestSlots(t *testing.T) {
	leaktest.Check(t)
	s := openSlots(1024)
	defer s.close()
	var many []*os.File
	for range 100 {
		f, err := os.Open("/proc/self/stat")
		must(t, err)
		defer f.Close()
		many = append(many, f)
	}
	high := int(many[len(many)-1].Fd())
	var taken []slot
	for range slotCount {
		sl, err := s.take([3]int{high, high, high})
		must(t, err)
		taken = append(taken, sl)
		for _, fd := range sl.fds {
			if fd < firstFree || fd >= int(many[0].Fd()) || !strings.HasSuffix(target(t, fd), "/stat") {
				t.Errorf("descriptor %d is %s", fd, target(t, fd))
			}
		}
	}
	// One more finds none, and has what there is.
	odd, err := s.take([3]int{high, high, high})
	must(t, err)
	if odd.kept || !strings.HasSuffix(target(t, odd.fds[2]), "/stat") {
		t.Errorf("kept: %v, %s", odd.kept, target(t, odd.fds[2]))
	}
	for _, sl := range append(taken, odd) {
		s.give(sl)
	}
	for _, sl := range taken {
		for _, fd := range sl.fds {
			if got := target(t, fd); strings.HasSuffix(got, "/stat") {
				t.Errorf("a free slot holds %s", got)
			}
		}
	}
	if _, err := unix.FcntlInt(uintptr(odd.fds[0]), unix.F_GETFD, 0); err == nil {
		t.Error("a slot that is not kept is open")
	}
}

// target is what a descriptor is open on.
func target(t *testing.T, fd int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	must(t, err)
	return name
}

// With few descriptors, most of them are left for others.
func TestFewSlots(t *testing.T) {
	leaktest.Check(t)
	s := openSlots(64)
	defer s.close()
	if n := len(s.free); n != 2 {
		t.Errorf("%d slots of 64 descriptors, want 2", n)
	}
}

// Where there is no room to keep any, starts do without.
func TestNoSlots(t *testing.T) {
	leaktest.Check(t)
	s := slots{holder: -1, free: make(chan slot)}
	sl, err := s.take([3]int{0, 1, 2})
	must(t, err)
	s.give(sl)
	s.close()
}
