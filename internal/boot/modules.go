package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/linux"
)

// errNoModule means that the image does not have the module's file.
var errNoModule = errors.New("no such module in the image")

// modules are the kernel modules of the image.
type modules struct {
	files map[string]string   // path by name
	needs map[string][]string // from modules.dep, where there is one
	done  map[string]error    // what came of those that were tried
}

// openModules lists the modules for the running kernel below root.
func openModules(root string) (*modules, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	m := &modules{files: map[string]string{}, needs: map[string][]string{}, done: map[string]error{}}
	dir := filepath.Join(root, "lib/modules", unix.ByteSliceToString(uts.Release[:]))
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(e.Name()); ok && !e.IsDir() {
			m.files[name] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	index, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err == nil {
		m.needs = parseDependencies(string(index))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read module dependencies: %w", err)
	}
	return m, nil
}

// moduleName is the kernel's name of the module in that file.
func moduleName(file string) (string, bool) {
	base, suffix, ok := strings.Cut(filepath.Base(file), ".ko")
	switch suffix {
	case "", ".gz", ".xz", ".zst":
		return strings.ReplaceAll(base, "-", "_"), ok
	default:
		return "", false
	}
}

// parseDependencies reads modules.dep: "file: file file", of which the later
// ones have to be loaded first, the last of them before all.
func parseDependencies(text string) map[string][]string {
	needs := map[string][]string{}
	for line := range strings.Lines(text) {
		file, rest, ok := strings.Cut(line, ":")
		name, isModule := moduleName(file)
		if !ok || !isModule {
			continue
		}
		list := []string{}
		for need := range strings.FieldsSeq(rest) {
			if n, ok := moduleName(need); ok {
				list = append([]string{n}, list...)
			}
		}
		needs[name] = list
	}
	return needs
}

// load loads a module and what it needs. One that the kernel has already is
// fine.
func (m *modules) load(name string) error {
	name = strings.ReplaceAll(name, "-", "_")
	err, tried := m.done[name]
	if !tried {
		m.done[name] = nil // whoever needs itself does not wait for itself
		err = m.loadNew(name)
		m.done[name] = err
	}
	return err
}

func (m *modules) loadNew(name string) error {
	path, ok := m.files[name]
	if !ok {
		if _, err := os.Stat("/sys/module/" + name); err == nil {
			return nil // built in
		}
		return fmt.Errorf("module %s: %w", name, errNoModule)
	}
	needs, err := m.needsOf(name, path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, need := range needs {
		if err := m.load(need); err != nil {
			return err
		}
	}
	if err := linux.LoadModule(path, !strings.HasSuffix(path, ".ko")); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func (m *modules) needsOf(name, path string) ([]string, error) {
	if needs, ok := m.needs[name]; ok {
		return needs, nil
	}
	if !strings.HasSuffix(path, ".ko") {
		return nil, errors.New("compressed, and modules.dep does not have it")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	return moduleNeeds(b)
}
