package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// traps is how many rows docs/TRAPS.md has to have.
const traps = 32

// TestTraps checks that each trap has a test, and that the tests named are
// there.
func TestTraps(t *testing.T) {
	text, err := os.ReadFile("../docs/TRAPS.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| (\d+) \|.*\| ([^|]*) \|$`)
	named := regexp.MustCompile("`([a-z/]+)\\.(Test[A-Za-z0-9]+)`")
	seen := make(map[int]bool)
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil || n < 1 || n > traps || seen[n] {
			t.Errorf("row %q is none of %d traps, or not the first of its number", m[1], traps)
		}
		seen[n] = true
		tests := named.FindAllStringSubmatch(m[2], -1)
		if len(tests) == 0 {
			t.Errorf("trap %d has no test", n)
		}
		for _, test := range tests {
			dir := test[1]
			if !strings.Contains(dir, "/") {
				dir = "internal/" + dir
			}
			if !declared(t, filepath.Join("..", dir), test[2]) {
				t.Errorf("trap %d: there is no %s in %s", n, test[2], dir)
			}
		}
	}
	if len(seen) != traps {
		t.Errorf("%d rows of %d", len(seen), traps)
	}
}

// declared tells whether a test file of dir declares that function.
func declared(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == name {
				return true
			}
		}
	}
	return false
}
