package linux

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// FSIdentity is whom the kernel takes a thread for when it touches files: what
// the thread may reach, and who owns what it makes.
type FSIdentity struct {
	UID, GID uint32

	// Groups are the supplementary groups; the process's own are kept with
	// KeepCapabilities.
	Groups []uint32

	// KeepCapabilities leaves the thread root's reach, so that the identity
	// only says who owns what is made.
	KeepCapabilities bool
}

// DoAs runs fn on the calling goroutine with the identity of id, and with the
// daemon's own again when it returns. Goroutines that fn starts do not have
// it. Where the thread has the user id already, as in a call from within fn or
// in a daemon that is not root, DoAs just calls fn.
//
// The identity belongs to one thread (setfsuid(2); setgroups(2) and capset(2)
// as bare system calls act on the caller alone), so the goroutine is locked to
// it meanwhile. The runtime never starts another thread from a locked one. The
// thread keeps its real, effective and saved user ids: the user may neither
// signal nor trace it. As a side effect of setfsuid the process dumps no core.
//
// A thread that cannot be made the daemon's again must not be used for
// anything else. Then DoAs ends the goroutine, as runtime.Goexit does, and the
// runtime ends the thread with it.
func DoAs(id FSIdentity, fn func() error) error {
	runtime.LockOSThread()
	t := thread{uid: fsuid(), gid: fsgid()}
	if t.uid == int(id.UID) {
		runtime.UnlockOSThread() // the call around this one, if any, keeps it
		return fn()
	}
	defer func() {
		if t.restore() != nil {
			runtime.Goexit()
		}
		runtime.UnlockOSThread()
	}()
	if err := t.become(id); err != nil {
		return err
	}
	return fn()
}

// thread is the identity that the calling thread had before become.
type thread struct {
	uid, gid int
	groups   []int
	caps     capabilities
	changed  bool // groups and caps are known
	confined bool // groups were replaced
}

// capabilities are the sets of a thread, 64 bits in two halves.
type capabilities [2]unix.CapUserData

func (t *thread) become(id FSIdentity) (err error) {
	if err := unix.Capget(capHeader(), &t.caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	t.changed = true
	if !id.KeepCapabilities {
		if t.groups, err = unix.Getgroups(); err != nil {
			return fmt.Errorf("getgroups: %w", err)
		}
		t.confined = true
		if err := setGroups(id.Groups); err != nil {
			return err
		}
	}
	if err := setIDs(int(id.UID), int(id.GID)); err != nil {
		return err
	}
	// Leaving user id 0 clears the capabilities over files and no others
	// (capabilities(7), "Effect of user ID changes"). Take all, or give those
	// back.
	caps := t.caps
	if !id.KeepCapabilities {
		caps[0].Effective, caps[1].Effective = 0, 0
	}
	return setCapabilities(caps)
}

// restore undoes become, also one that failed half-way.
func (t *thread) restore() error {
	if !t.changed {
		return nil
	}
	if err := setIDs(t.uid, t.gid); err != nil {
		return err
	}
	// After the ids, because user id 0 gives capabilities over files back, and
	// before the groups, which need CAP_SETGID.
	if err := setCapabilities(t.caps); err != nil {
		return err
	}
	if !t.confined {
		return nil
	}
	if err := unix.Setgroups(t.groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	return nil
}

func capHeader() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

func setCapabilities(caps capabilities) error {
	if err := unix.Capset(capHeader(), &caps[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

func setGroups(groups []uint32) error {
	ids := make([]int, len(groups))
	for i, g := range groups {
		ids[i] = int(g)
	}
	if err := unix.Setgroups(ids); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	return nil
}

// setIDs sets both file system ids. The calls report no error, so the ids are
// read back.
func setIDs(uid, gid int) error {
	_ = unix.Setfsgid(gid)
	_ = unix.Setfsuid(uid)
	if fsgid() != gid || fsuid() != uid {
		return fmt.Errorf("set file system ids %d:%d: %w", uid, gid, unix.EPERM)
	}
	return nil
}

// invalidID changes nothing and makes the calls answer the present id.
const invalidID = -1

func fsuid() int {
	uid, _ := unix.SetfsuidRetUid(invalidID)
	return uid
}

func fsgid() int {
	gid, _ := unix.SetfsgidRetGid(invalidID)
	return gid
}
