package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrUnknownUser means that no account has that name.
var ErrUnknownUser = errors.New("unknown user")

// Account is a user. A published value is never changed.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // supplementary, and GID
	Home     string
}

// Accounts looks users and groups up in their files, which it reads again when
// they have changed. An image without a users file has one user, root.
type Accounts struct {
	passwd, group string // paths

	mu     sync.Mutex
	loaded bool
	stamps [2]stamp           // guarded by mu, as is all below; of the files as read
	byName map[string]Account // users
	users  map[uint32]string  // names
	groups map[uint32]string
}

// stamp tells versions of a file apart: the tools that change accounts rename
// a new file into place, editors may write it over.
type stamp struct {
	inode        uint64
	size         int64
	mtime, ctime unix.Timespec
}

// NewAccounts reads accounts from the two files; they need not exist.
func NewAccounts(passwd, group string) *Accounts {
	return &Accounts{passwd: passwd, group: group}
}

// Lookup finds the account of that name.
func (a *Accounts) Lookup(name string) (Account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refreshLocked()
	acct, ok := a.byName[name]
	if !ok {
		return Account{}, fmt.Errorf("%w: %q", ErrUnknownUser, name)
	}
	return acct, nil
}

// UserName answers the name of uid, or the number in words when it has none.
func (a *Accounts) UserName(uid uint32) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refreshLocked()
	return nameOf(a.users, uid)
}

// GroupName answers the name of gid; see UserName.
func (a *Accounts) GroupName(gid uint32) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refreshLocked()
	return nameOf(a.groups, gid)
}

func nameOf(names map[uint32]string, id uint32) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// refreshLocked reads the files again if they are not as they were.
func (a *Accounts) refreshLocked() {
	now := [2]stamp{stampOf(a.passwd), stampOf(a.group)}
	if a.loaded && now == a.stamps {
		return
	}
	passwd, err := readIfThere(a.passwd)
	group, groupErr := readIfThere(a.group)
	switch {
	case err == nil && groupErr == nil:
		// The stamps are from before the read: a change during it is seen next time.
		a.stamps, a.loaded = now, true
	case a.loaded:
		// No descriptor was left, or a thread that is a user for files may not
		// read them. What was known holds until a call can.
		return
	}
	a.byName, a.users = parsePasswd(passwd)
	if len(a.byName) == 0 {
		a.byName = map[string]Account{"root": {Name: "root", Home: "/"}}
		a.users = map[uint32]string{0: "root"}
	}
	var members map[string][]uint32
	a.groups, members = parseGroup(group)
	if len(a.groups) == 0 {
		a.groups = map[uint32]string{0: "root"}
	}
	for name, acct := range a.byName {
		acct.Groups = append([]uint32{acct.GID}, members[name]...)
		slices.Sort(acct.Groups)
		acct.Groups = slices.Compact(acct.Groups)
		a.byName[name] = acct
	}
}

// readIfThere reads a file; a missing one is empty.
func readIfThere(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

func stampOf(path string) stamp {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return stamp{}
	}
	return stamp{inode: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// parsePasswd reads passwd(5) lines: name:password:uid:gid:gecos:home:shell.
// Lines it cannot make sense of are passed over; of equal names or ids the
// first counts, as in the C library.
func parsePasswd(text []byte) (byName map[string]Account, names map[uint32]string) {
	byName, names = make(map[string]Account), make(map[uint32]string)
	for f := range fields(text, 7) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if f[0] == "" || err1 != nil || err2 != nil {
			continue
		}
		if _, taken := byName[f[0]]; taken {
			continue
		}
		byName[f[0]] = Account{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5]}
		if _, taken := names[uint32(uid)]; !taken {
			names[uint32(uid)] = f[0]
		}
	}
	return byName, names
}

// parseGroup reads group(5) lines: name:password:gid:members.
func parseGroup(text []byte) (names map[uint32]string, members map[string][]uint32) {
	names, members = make(map[uint32]string), make(map[string][]uint32)
	for f := range fields(text, 4) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if f[0] == "" || err != nil {
			continue
		}
		if _, taken := names[uint32(gid)]; !taken {
			names[uint32(gid)] = f[0]
		}
		for user := range strings.SplitSeq(f[3], ",") {
			if user = strings.TrimSpace(user); user != "" {
				members[user] = append(members[user], uint32(gid))
			}
		}
	}
	return names, members
}

// fields yields the lines of text that have n fields or more.
func fields(text []byte, n int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(string(text)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) >= n && !strings.HasPrefix(f[0], "#") && !yield(f) {
				return
			}
		}
	}
}
