package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain is also the program itself, for tests that run it.
func TestMain(m *testing.M) {
	if os.Getenv("TESTREPORT_MAIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A module with tests that end in every way there is.
var module = map[string]string{
	"go.mod":           "module example.test/m\n\ngo 1.26\n",
	"good/good.go":     "package good\n",
	"good/a_test.go":   "package good\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"x\", func(t *testing.T) { t.Log(\"quiet\") }) }\n",
	"skip/a_test.go":   "package skip\nimport \"testing\"\nfunc TestS(t *testing.T) { t.Skip(\"no such thing here\") }\nfunc TestP(t *testing.T) {}\n",
	"bad/a_test.go":    "package bad\nimport \"testing\"\nfunc TestB(t *testing.T) { t.Run(\"x\", func(t *testing.T) { t.Error(\"wrong\") }) }\nfunc TestP(t *testing.T) {}\n",
	"panic/a_test.go":  "package panic\nimport (\"os\"; \"testing\")\nfunc TestX(t *testing.T) { t.Run(\"x\", func(t *testing.T) { println(\"bye\"); os.Exit(3) }) }\n",
	"main/a_test.go":   "package main\nimport (\"os\"; \"testing\")\nfunc TestMain(m *testing.M) { println(\"no way\"); os.Exit(1) }\n",
	"broken/a_test.go": "package broken\nimport \"testing\"\nfunc TestX(t *testing.T) { undefined() }\n",
	"none/none.go":     "package none\n",
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	for name, text := range module {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, packages string
		args           []string
		code           int
		want, not      []string
		last           string
	}{
		{
			name: "passed", packages: "./good ./none", want: []string{"ok  \texample.test/m/good\t", "no test files"},
			not: []string{"quiet", "=== RUN", "PASS"}, last: "2 passed, 0 failed, 0 skipped",
		},
		{
			name: "skipped", packages: "./skip", code: 1,
			want: []string{"SKIP example.test/m/skip TestS: a_test.go:3: no such thing here\n"}, last: "1 passed, 0 failed, 1 skipped",
		},
		{name: "skipped with leave", packages: "./skip", args: []string{"-skips-ok"}, last: "1 passed, 0 failed, 1 skipped"},
		{
			name: "failed", packages: "./bad ./good", code: 1,
			want: []string{"--- FAIL: TestB/x", "a_test.go:3: wrong", "--- FAIL: TestB ", "FAIL\texample.test/m/bad", "ok  \texample.test/m/good"},
			last: "3 passed, 2 failed, 0 skipped",
		},
		{name: "ended early", packages: "./panic", code: 1, want: []string{"bye", "FAIL\texample.test/m/panic"}, last: "0 passed, 2 failed, 0 skipped"},
		{name: "failed in TestMain", packages: "./main", code: 1, want: []string{"no way", "FAIL\texample.test/m/main"}, last: "0 passed, 1 failed, 0 skipped"},
		{name: "does not build", packages: "./broken", code: 1, want: []string{"undefined: undefined", "[build failed]"}, last: "0 passed, 1 failed, 0 skipped"},
		{name: "no tests", packages: "./none", code: 1, last: "0 passed, 0 failed, 0 skipped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			events := exec.CommandContext(t.Context(), "go", append([]string{"test", "-json"}, strings.Fields(tc.packages)...)...)
			events.Dir = dir
			var in bytes.Buffer
			events.Stdout = &in
			_ = events.Run() // fails with the tests it runs
			out, code := run(t, &in, tc.args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.HasSuffix("\n"+out, "\n"+tc.last+"\n") {
				t.Errorf("last line is not %q", tc.last)
			}
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q", want)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(out, not) {
					t.Errorf("has %q", not)
				}
			}
			if t.Failed() {
				t.Logf("output:\n%s", out)
			}
		})
	}
}

func TestReportCutOff(t *testing.T) {
	out, code := run(t, strings.NewReader(`{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestB","Output":"working\n"}
go: something else`))
	const want = "go: something else\nunfinished: p\nworking\n1 passed, 1 failed, 0 skipped\n"
	if out != want || code != 1 {
		t.Errorf("exit code %d, output:\n%s\nwant 1 and:\n%s", code, out, want)
	}
}

// run runs the program.
func run(t *testing.T, in io.Reader, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "TESTREPORT_MAIN=1")
	cmd.Stdin = in
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}
