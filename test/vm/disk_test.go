package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// makeDisk makes an ext4 file system in a file, with what fill puts into a
// directory.
func makeDisk(t testing.TB, sizeMiB int, fill func(dir string)) string {
	t.Helper()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	fill(dir)
	tool(t, "mkfs.ext4", "-q", "-F", "-d", dir, file, fmt.Sprintf("%dM", sizeMiB))
	return file
}

// install puts the tests' program and modules into an image.
func install(t testing.TB, dir string, modules ...string) {
	t.Helper()
	copyFile(t, env.guest, filepath.Join(dir, "guest"), 0o755)
	files, err := env.kernel.closure(modules...)
	must(t, err)
	for _, file := range files {
		copyFile(t, file, filepath.Join(dir, env.kernel.inImage(file)), 0o644)
	}
}

func copyFile(t testing.TB, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	must(t, os.WriteFile(to, b, mode))
}

// checkClean wants a file system that was unmounted: fsck, which changes
// nothing here, finds nothing to do, not even a journal to replay.
func checkClean(t *testing.T, disk string) {
	t.Helper()
	if out := tool(t, "dumpe2fs", "-h", disk); strings.Contains(out, "needs_recovery") {
		t.Errorf("the journal was left to be replayed:\n%s", out)
	}
	tool(t, "e2fsck", "-f", "-n", disk)
}

// tool runs a program of this machine that has to succeed.
func tool(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return string(out)
}
