package reap

import "golang.org/x/sys/unix"

// slotCount is how many starts at a time find their descriptors low: as many as
// there are under way, but for those that are stuck.
const slotCount = 16

// slot is where a child finds its standard input, output and error. A child takes
// a copy of the descriptors up to there, and what a start takes grows with their
// number. The kernel gives the lowest that is free, so with many commands the
// ends of a new pipe are far up. Therefore some low ones are kept.
type slot struct {
	fds  [3]int
	kept bool // else it is made for one start
}

// slots are those that are kept. Its methods are safe for concurrent use.
type slots struct {
	holder int       // what a free slot has open, and means nothing; -1: nothing is kept
	free   chan slot // of slotCount
}

// slotShare is the part of all descriptors that is kept at most: one in so many.
const slotShare = 8

// openSlots keeps as many as limit, on all descriptors, has room for.
func openSlots(limit int) slots {
	s := slots{free: make(chan slot, slotCount)}
	var err error
	if s.holder, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return s
	}
	for range min(slotCount, limit/slotShare/len(slot{}.fds)) {
		sl, err := duplicate([3]int{s.holder, s.holder, s.holder})
		if err != nil {
			break
		}
		sl.kept = true
		s.free <- sl
	}
	return s
}

// take puts files into a slot, which the caller gives back.
func (s slots) take(files [3]int) (slot, error) {
	select {
	case sl := <-s.free:
		s.fill(sl, files)
		return sl, nil
	default:
		return duplicate(files)
	}
}

// give takes a slot back, whose files are closed.
func (s slots) give(sl slot) {
	if !sl.kept {
		sl.close()
		return
	}
	s.fill(sl, [3]int{s.holder, s.holder, s.holder})
	s.free <- sl
}

// fill replaces what the slot has open. It fails for nothing: all of them are
// open.
func (s slots) fill(sl slot, files [3]int) {
	for i, fd := range files {
		_ = unix.Dup3(fd, sl.fds[i], unix.O_CLOEXEC)
	}
}

// close ends the keeping.
func (s slots) close() {
	if s.holder < 0 {
		return
	}
	_ = unix.Close(s.holder)
	for {
		select {
		case sl := <-s.free:
			sl.close()
		default:
			return
		}
	}
}

// duplicate makes a slot of files. It is above the three that it becomes in the
// child.
func duplicate(files [3]int) (sl slot, err error) {
	sl.fds = [3]int{-1, -1, -1}
	for i, fd := range files {
		if sl.fds[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			sl.close()
			return sl, err
		}
	}
	return sl, nil
}

func (sl slot) close() {
	for _, fd := range sl.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
