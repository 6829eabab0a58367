package vm

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// archive writes an initramfs: a cpio archive in the "newc" format (kernel
// Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w    io.Writer
	dirs map[string]bool
	inos int
	size int64
	err  error
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{"": true}} }

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
		a.size += int64(len(b))
	}
}

// pad fills up to a multiple of four.
func (a *archive) pad() { a.write(make([]byte, -a.size&3)) }

// entry adds one name. Directories above it are made on the way.
func (a *archive) entry(name string, mode uint32, content []byte) {
	name = strings.Trim(path.Clean(name), "/")
	if above := path.Dir(name); above != "." {
		a.dir(above)
	}
	a.inos++
	links := 1
	// Magic, then 13 fields: inode, mode, uid, gid, links, mtime, size, the
	// device's and the node's major and minor number, name length, checksum.
	head := "070701"
	for _, field := range []int{a.inos, int(mode), 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		head += fmt.Sprintf("%08x", field)
	}
	a.write([]byte(head + name + "\x00"))
	a.pad()
	a.write(content)
	a.pad()
}

func (a *archive) dir(name string) {
	name = strings.Trim(path.Clean(name), "/")
	if a.dirs[name] {
		return
	}
	a.dirs[name] = true
	a.entry(name, 0o040755, nil)
}

func (a *archive) file(name string, mode fs.FileMode, content []byte) {
	a.entry(name, 0o100000|uint32(mode.Perm()), content)
}

func (a *archive) link(name, target string) { a.entry(name, 0o120777, []byte(target)) }

// copyFile adds the machine's file under that name.
func (a *archive) copyFile(name, from string, mode fs.FileMode) {
	b, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.file(name, mode, b)
}

// close ends the archive.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

// initramfs makes an archive in a file.
func initramfs(to string, fill func(*archive)) error {
	var b bytes.Buffer
	a := newArchive(&b)
	fill(a)
	if err := a.close(); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return os.WriteFile(to, b.Bytes(), 0o644)
}
