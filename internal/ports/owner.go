package ports

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxCommand bounds the command of a port, in bytes.
const maxCommand = 1024

// findOwners fills in whose sockets ports are, by looking through the
// descriptors of all processes. It takes a while: under no lock.
func findOwners(ports []Port) {
	missing := make(map[uint32][]*Port, len(ports)) // by inode
	for i := range ports {
		p := &ports[i]
		missing[p.inode] = append(missing[p.inode], p)
	}
	for _, pid := range processes() {
		if len(missing) == 0 {
			return
		}
		found := sockets(pid, missing)
		if len(found) == 0 {
			continue
		}
		name := command(pid)
		for _, inode := range found {
			for _, p := range missing[inode] {
				p.PID, p.Command = pid, name
			}
			delete(missing, inode)
		}
	}
}

// processes lists pids from low to high: a socket that was inherited is its
// first owner's.
func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what was read counts
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// sockets answers which of the inodes a process has open. One that is gone or
// not ours to look at has none.
func sockets(pid int, inodes map[uint32][]*Port) (found []uint32) {
	path := "/proc/" + strconv.Itoa(pid) + "/fd"
	dir, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		link, err := os.Readlink(path + "/" + name)
		if err != nil {
			continue
		}
		inode, ok := socketInode(link)
		if ok && inodes[inode] != nil && !slices.Contains(found, inode) {
			found = append(found, inode)
		}
	}
	return found
}

// socketInode reads the target of a link in /proc/PID/fd: "socket:[123]".
func socketInode(link string) (uint32, bool) {
	number, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	number, ok = strings.CutSuffix(number, "]")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(number, 10, 32)
	return uint32(inode), err == nil
}

// command is a process's command line, arguments separated by blanks.
func command(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return ""
	}
	b = bytes.TrimRight(b, "\x00")
	return string(bytes.ReplaceAll(b[:min(len(b), maxCommand)], []byte{0}, []byte{' '}))
}
