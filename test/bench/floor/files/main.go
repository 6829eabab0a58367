// Command files is the floor of listings and watches. Each line on standard
// input is a directory, after "list " or "watch "; it does the least that
// takes and prints how much it found.
package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		n, err := do(in.Text())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

func do(line string) (int, error) {
	verb, dir, _ := strings.Cut(line, " ")
	if verb == "watch" {
		return watch(dir)
	}
	return list(dir)
}

// list reads a directory in the order of names and looks at each entry.
func list(dir string) (found int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(dir, e.Name())); err != nil {
			return found, err
		}
		found++
	}
	return found, nil
}

// watch watches each directory of a tree.
func watch(dir string) (found int, err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		found++
		_, err = unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS|unix.IN_ONLYDIR)
		return err
	})
	return found, err
}
