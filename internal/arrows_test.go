// Package internal holds no code, only the test of what the packages of this
// module may import. docs/ARCHITECTURE.md draws the picture that it enforces.
package internal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/wrenn/envd"

// rule says what one package may import of this module, and whether it may know
// the wire: net/http, Connect and generated code.
type rule struct {
	imports []string
	wire    bool
}

// arrows is the layout. A package that is not in it has no place in the layout
// yet: it fails the test until somebody decides on one.
var arrows = map[string]rule{
	// process only for the defaults of the flags that set its limits, linux for sync.
	"cmd/envd": {imports: []string{"internal/daemon", "internal/linux", "internal/process"}},
	// The client's calls take generated messages.
	"cmd/envdctl": {imports: []string{"client", "gen"}, wire: true},
	"client":      {imports: []string{"gen"}, wire: true},

	"internal": {},
	"internal/daemon": {wire: true, imports: []string{
		"gen", "internal/api", "internal/boot", "internal/cgroup", "internal/filesystem", "internal/guest", "internal/linux",
		"internal/metrics", "internal/mmds", "internal/ports", "internal/process", "internal/reap",
		"internal/server", "internal/snapshot", "internal/watch",
	}},
	// linux only for TCP_INFO, by which the server tells dead peers, and for the
	// interface that a connection came in on.
	"internal/server": {wire: true, imports: []string{"internal/linux"}},
	// Not the server: api is served by whatever calls it.
	"internal/api": {wire: true, imports: []string{
		"gen", "internal/filesystem", "internal/guest", "internal/metrics", "internal/ports", "internal/process",
		"internal/snapshot", "internal/watch",
	}},
	"internal/process":    {imports: []string{"internal/reap", "internal/cgroup", "internal/linux"}},
	"internal/reap":       {imports: []string{"internal/linux", "internal/vfork"}},
	"internal/vfork":      {},
	"internal/cgroup":     {imports: []string{"internal/linux"}},
	"internal/filesystem": {imports: []string{"internal/linux"}},
	"internal/watch":      {imports: []string{"internal/linux"}},
	"internal/ports":      {imports: []string{"internal/linux"}},
	"internal/snapshot":   {},
	"internal/boot":       {imports: []string{"internal/linux"}},
	"internal/guest":      {imports: []string{"internal/linux"}},
	"internal/mmds":       {imports: []string{"internal/linux"}, wire: true},
	"internal/metrics":    {imports: []string{"internal/linux"}},
	"internal/linux":      {},
	"internal/leaktest":   {},
}

// free are trees without arrows of their own: generated code, tests of the
// whole, and what serves the build.
var free = []string{"gen", "test", "scripts"}

// listed is what go list tells of a package.
type listed struct {
	Dir, ImportPath, Doc      string
	Imports, Deps             []string // direct; all, also indirect
	TestImports, XTestImports []string
	TestGoFiles, XTestGoFiles []string
}

func (p listed) name() string { return local(p.ImportPath) }

func TestArrows(t *testing.T) {
	for _, p := range list(t) {
		if !slices.ContainsFunc(free, func(tree string) bool { return within(p.name(), tree) }) {
			for _, v := range violations(p) {
				t.Error(v)
			}
		}
	}
}

// TestPackageDocs wants a comment on every package that somebody writes, also
// on one that consists of tests only.
func TestPackageDocs(t *testing.T) {
	for _, p := range list(t) {
		if !within(p.name(), "gen") && p.Doc == "" && !testsHaveDoc(t, p) {
			t.Errorf("%s: no package comment", p.name())
		}
	}
}

func TestViolations(t *testing.T) {
	for _, tc := range []struct {
		name string
		p    listed
		want string // part of the only violation, or empty
	}{
		{"allowed", listed{ImportPath: module + "/internal/reap", Imports: []string{"os", module + "/internal/linux"}}, ""},
		{"allowed tree", listed{ImportPath: module + "/client", Imports: []string{module + "/gen/process"}}, ""},
		{"leaktest in a test", listed{ImportPath: module + "/internal/reap", TestImports: []string{module + "/internal/leaktest"}}, ""},
		{"itself in an external test", listed{ImportPath: module + "/internal/reap", XTestImports: []string{module + "/internal/reap"}}, ""},
		{"wire where it may be", listed{ImportPath: module + "/internal/api", Imports: []string{"net/http", "connectrpc.com/connect"}}, ""},
		{"no arrow", listed{ImportPath: module + "/internal/linux", Imports: []string{module + "/internal/reap"}}, "linux imports internal/reap"},
		{"no arrow in a test", listed{ImportPath: module + "/internal/api", TestImports: []string{module + "/internal/server"}}, "api imports internal/server"},
		{"leaktest outside tests", listed{ImportPath: module + "/internal/reap", Imports: []string{module + "/internal/leaktest"}}, "reap imports internal/leaktest"},
		{"wire", listed{ImportPath: module + "/internal/process", Deps: []string{"net", "net/http"}}, "process depends on net/http"},
		{"wire in a test", listed{ImportPath: module + "/internal/guest", XTestImports: []string{"net/http/httptest"}}, "guest depends on net/http/httptest"},
		{"unknown", listed{ImportPath: module + "/internal/utils"}, "utils: not in the table"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := violations(tc.p)
			if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// violations says which arrows p breaks.
func violations(p listed) []string {
	r, known := arrows[p.name()]
	if !known {
		return []string{p.name() + ": not in the table of arrows"}
	}
	tests := slices.Concat(p.TestImports, p.XTestImports)
	var found []string
	check := func(imports, allowed []string) {
		for _, path := range imports {
			name, ours := strings.CutPrefix(path, module+"/")
			if ours && !slices.ContainsFunc(allowed, func(a string) bool { return within(name, a) }) {
				found = append(found, fmt.Sprintf("%s imports %s", p.name(), name))
			}
		}
	}
	check(p.Imports, r.imports)
	check(tests, append([]string{p.name(), "internal/leaktest"}, r.imports...))
	// A command depends on the wire through its parts.
	if !r.wire && !within(p.name(), "cmd") {
		all := slices.Concat(p.Deps, tests)
		if i := slices.IndexFunc(all, ofWire); i >= 0 { // what that one brings with it says no more
			found = append(found, fmt.Sprintf("%s depends on %s", p.name(), all[i]))
		}
	}
	return found
}

func ofWire(path string) bool {
	return within(path, "net/http") || within(path, "connectrpc.com") || within(local(path), "gen")
}

// within tells whether a path is that of the tree or below it.
func within(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

// local is the path of a package inside this module, or the path unchanged.
func local(path string) string { return strings.TrimPrefix(path, module+"/") }

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list",
		"-json=Dir,ImportPath,Doc,Imports,Deps,TestImports,XTestImports,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF) && len(all) > 0:
			return all
		case err != nil:
			t.Fatalf("go list: %v after %d packages", err, len(all))
		}
		all = append(all, p)
	}
}

func testsHaveDoc(t *testing.T, p listed) bool {
	t.Helper()
	for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if f.Doc.Text() != "" {
			return true
		}
	}
	return false
}
