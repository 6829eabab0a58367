package sdk

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// cacheDir is where scripts/install-test-deps keeps things, too.
func cacheDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("ENVD_TEST_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "envd-test")
}

// python is the machine's Python, with the path to the SDK in its environment:
// pip installs it into the cache, once for each list of requirements.
func python(t *testing.T) string {
	t.Helper()
	list, err := os.ReadFile("py/requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	// Not python3 itself, which may be a script that finds out which one.
	program, err := exec.CommandContext(t.Context(), "python3", "-c", "import sys; print(sys.executable, end='')").Output()
	if err != nil {
		t.Fatalf("no python3: run scripts/install-test-deps: %v", err)
	}
	dir := filepath.Join(cacheDir(t), fmt.Sprintf("pip-%.16x", sha256.Sum256(append(list, program...))))
	if _, err := os.Stat(dir); err != nil {
		tmp := dir + ".tmp"
		_ = os.RemoveAll(tmp)
		cmd := exec.CommandContext(t.Context(), string(program), "-m", "pip", "install", "--quiet", "--no-deps",
			"--disable-pip-version-check", "--target", tmp, "-r", "py/requirements.txt")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pip install: %v\n%s", err, out)
		}
		if err := os.Rename(tmp, dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PYTHONPATH", dir)
	return string(program)
}

// install copies a directory of ours into the cache and lets npm install, as
// the lock file beside it says, what it needs: once for each lock file.
func install(t *testing.T, from string) string {
	t.Helper()
	lock, err := os.ReadFile(filepath.Join(from, "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cacheDir(t), fmt.Sprintf("npm-%s-%.16x", from, sha256.Sum256(lock)))
	if _, err := os.Stat(filepath.Join(dir, "node_modules")); err != nil {
		// All or nothing: another run, or one that was ended, finds it whole.
		tmp := dir + ".tmp"
		_ = os.RemoveAll(tmp)
		copyFiles(t, from, tmp)
		cmd := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		cmd.Dir = tmp
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
		_ = os.RemoveAll(dir)
		if err := os.Rename(tmp, dir); err != nil {
			t.Fatal(err)
		}
	}
	copyFiles(t, from, dir) // the tests as they are now
	return dir
}

func copyFiles(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(from, "*.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(name)), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// nodeProgram is a node that the SDK supports: the machine's, or a newer one
// from npm, since Debian's stays behind.
func nodeProgram(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("no node: run scripts/install-test-deps")
	}
	version, err := exec.CommandContext(t.Context(), path, "--version").Output()
	if err == nil && supported(string(version)) {
		return path
	}
	// Not .bin/node: npm 9 removes that along with the package for another
	// architecture, which has a program of the same name.
	programs, err := filepath.Glob(filepath.Join(install(t, "node"), "node_modules/node-linux-*/bin/node"))
	if err != nil || len(programs) != 1 {
		t.Fatalf("programs in what npm installed: %q, %v", programs, err)
	}
	return programs[0]
}

// supported is the SDK's "engines": >=20.18.1 <21 || >=22.
func supported(version string) bool {
	var major, minor, patch int
	if _, err := fmt.Sscanf(version, "v%d.%d.%d", &major, &minor, &patch); err != nil {
		return false
	}
	return major >= 22 || major == 20 && (minor > 18 || minor == 18 && patch >= 1)
}

func TestSupported(t *testing.T) {
	for version, want := range map[string]bool{
		"v18.20.4\n": false, "v20.18.0": false, "v20.18.1": true, "v20.19.2\n": true, "v21.7.3": false, "v22.0.0": true, "v24.1.0": true, "": false,
	} {
		if got := supported(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}
