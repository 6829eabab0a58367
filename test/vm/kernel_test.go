package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernel is an unpacked kernel package: nothing is installed on this machine.
type kernel struct {
	image   string
	release string
	modules map[string]string // file by name
}

// cacheDir is where scripts/install-test-deps unpacks packages.
func cacheDir() (string, error) {
	if dir := os.Getenv("ENVD_TEST_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache of packages: %w", err)
	}
	return filepath.Join(base, "envd-test"), nil
}

func findKernel() (*kernel, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(cache, "kernel/boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("no kernel below %s: run scripts/install-test-deps (%v, %v)", cache, images, err)
	}
	k := &kernel{
		image:   images[0],
		release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"),
		modules: map[string]string{},
	}
	dir := filepath.Join(cache, "kernel/lib/modules", k.release)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil && !e.IsDir() {
			k.modules[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	return k, err
}

// closure lists the files of the named modules and of all that they need.
func (k *kernel) closure(names ...string) ([]string, error) {
	var files []string
	seen := map[string]bool{}
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		file, ok := k.modules[name]
		if !ok {
			return nil, fmt.Errorf("kernel %s has no module %s", k.release, name)
		}
		files = append(files, file)
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if _, needs, ok := bytes.Cut(b, []byte("\x00depends=")); ok {
			list, _, _ := bytes.Cut(needs, []byte{0})
			if len(list) > 0 {
				names = append(names, strings.Split(string(list), ",")...)
			}
		}
	}
	slices.Sort(files)
	return files, nil
}

// inImage is the place of a module's file in an image.
func (k *kernel) inImage(file string) string {
	_, below, _ := strings.Cut(file, "/lib/modules/")
	return "lib/modules/" + below
}

// programs are the binaries under test, built as releases are.
type programs struct {
	envd  string
	guest string // what a test needs done inside
}

func build(dir string) (*programs, error) {
	p := &programs{envd: filepath.Join(dir, "envd"), guest: filepath.Join(dir, "guest")}
	return p, errors.Join(
		goBuild("../..", p.envd, "./cmd/envd"),
		goBuild(".", p.guest, "./guest"))
}

func goBuild(module, to, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", to, pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}
