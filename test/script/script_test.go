// Package script runs console sessions against the built binaries: the *.txt
// files of this directory, and the sessions in README.md.
//
// A session is what a person would see in a terminal: lines that begin with
// "$ " are typed, the lines below are what has to be printed, exactly. A line
// of "..." stands for any lines. Each file has network and mount namespaces of its own with a
// fresh daemon on the default port, and one shell, in which $CGROUP2 is where
// cgroup v2 is mounted.
package script

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wrenn/envd/test/cgroups"
)

const (
	daemonAddr = "127.0.0.1:49983"
	// stepLimit bounds one command and what it prints.
	stepLimit = 20 * time.Second
	// insideVar tells the re-executed test that it is in its own namespace.
	insideVar = "ENVD_SCRIPT_INSIDE"
)

// session is one file's worth of steps.
type session struct {
	name  string
	flags []string // of the daemon, from a line "# flags: …"
	steps []step
}

type step struct {
	line    int
	command string
	want    []string
}

func TestMain(m *testing.M) {
	if os.Getenv(insideVar) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "bring loopback up: %v: %s\n", err, out)
			os.Exit(1)
		}
		// What a session mounts is its own.
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			fmt.Fprintf(os.Stderr, "private mounts: %v\n", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(f, ".txt"), func(t *testing.T) { isolated(t, parseFile(t, f, false)) })
	}
}

// The README's first command, in the two parts that a session runs it in.
const (
	readmeBuild = "CGO_ENABLED=0 go build -o bin/ ./cmd/..."
	readmeRun   = "bin/envd --isnotfc"
)

func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "\n    " + readmeBuild + " && " + readmeRun + "\n"; !strings.Contains(string(text), want) {
		t.Errorf("the README does not begin with the command that this test runs:%s", want)
	}
	isolated(t, parseFile(t, "../../README.md", true))
}

// TestReadmeBuild holds the README to its word about what it builds.
func TestReadmeBuild(t *testing.T) {
	dir := t.TempDir()
	buildInto(t, dir)
	t.Run("static", func(t *testing.T) { checkStatic(t, dir) })
	t.Run("flags", func(t *testing.T) { checkFlags(t, dir) })
}

// checkStatic finds a build that takes the machine's libc, as a plain go build
// does where there is a C compiler.
func checkStatic(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"envd", "envdctl"} {
		program, err := elf.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("%s asks for a loader, and so for a libc", name)
		}
	}
}

// checkFlags holds the README's table of flags against the daemon's own list.
func checkFlags(t *testing.T, dir string) {
	t.Helper()
	help, err := exec.CommandContext(t.Context(), filepath.Join(dir, "envd"), "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(readme), "\n## Flags\n")
	table, _, _ = strings.Cut(table, "\n## ")
	has := names(`(?m)^  -([a-z-]+)`, string(help))
	told := names("`--([a-z-]+)[^`]*`", strings.Join(regexp.MustCompile(`(?m)^\|[^|]*\|`).FindAllString(table, -1), "\n"))
	if len(has) < 10 || !slices.Equal(has, told) {
		t.Errorf("flags of the daemon:\n%q\nin the README:\n%q", has, told)
	}
}

// names are what the group of pattern matches in text, in order of the alphabet.
func names(pattern, text string) []string {
	var found []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	slices.Sort(found)
	return found
}

// isolated runs the session in a new network namespace: by this test binary
// again, told to run just this test.
func isolated(t *testing.T, s session) {
	if os.Getenv(insideVar) != "" {
		run(t, s)
		return
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("ran no test:\n%s", out)
	}
}

// parseFile reads a session; of a Markdown file only its console blocks.
func parseFile(t *testing.T, path string, markdown bool) session {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := session{name: path}
	inside := !markdown
	for i, line := range strings.Split(string(b), "\n") {
		switch command, typed := strings.CutPrefix(line, "$ "); {
		case markdown && strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case strings.HasPrefix(line, "# flags: "):
			s.flags = strings.Fields(os.Expand(strings.TrimPrefix(line, "# flags: "), variable))
		case !markdown && (strings.HasPrefix(line, "#") || line == ""):
		case typed:
			s.steps = append(s.steps, step{line: i + 1, command: command})
		case len(s.steps) > 0:
			last := &s.steps[len(s.steps)-1]
			last.want = append(last.want, line)
		}
	}
	if len(s.steps) == 0 {
		t.Fatalf("%s: no steps", path)
	}
	return s
}

// variable is what a session's flags and commands may say $NAME for.
func variable(name string) string {
	return map[string]string{"CGROUP2": cgroups.Mount()}[name]
}

// run starts a daemon and types the session's commands.
func run(t *testing.T, s session) {
	dir := t.TempDir()
	buildInto(t, filepath.Join(dir, "bin"))
	startDaemon(t, dir, s.flags)
	sh := startShell(t, dir)
	for _, st := range s.steps {
		if got, ok := sh.do(st); !ok {
			t.Fatalf("%s:%d: $ %s\ngot:\n%s\nwant:\n%s", s.name, st.line, st.command,
				got, strings.Join(st.want, "\n"))
		}
	}
}

// buildInto builds the binaries as a user does, but to dir instead of bin.
func buildInto(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(readmeBuild, "bin/", dir+"/", 1))
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

func startDaemon(t *testing.T, dir string, flags []string) {
	t.Helper()
	var log bytes.Buffer
	command := strings.Fields(readmeRun)
	cmd := exec.Command(command[0], append(command[1:], flags...)...)
	cmd.Dir, cmd.Stderr = dir, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("daemon did not end in order: %v", err)
		}
		if t.Failed() {
			t.Logf("daemon's log:\n%s", &log)
		}
	})
	for limit := time.Now().Add(stepLimit); ; {
		conn, err := net.Dial("tcp", daemonAddr)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("daemon does not listen: %v\n%s", err, &log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// shell is a bash that reads commands from a pipe.
type shell struct {
	in    io.Writer
	lines chan string
	count int
}

func startShell(t *testing.T, dir string) *shell {
	t.Helper()
	cmd := exec.Command("bash", "--norc", "--noprofile")
	cmd.Dir = dir
	// Without job control notices, and without what this test was started with.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C", "CGROUP2=" + variable("CGROUP2")}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	sh := &shell{in: in, lines: make(chan string, 1024)}
	go func() {
		defer close(sh.lines)
		for sc := bufio.NewScanner(r); sc.Scan(); {
			sh.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		// With what a session that broke off left in the background.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = r.Close()
	})
	return sh
}

// do types one command and reads until it is done and has printed what it has
// to, in whatever order jobs in the background do.
func (sh *shell) do(st step) (got string, ok bool) {
	sh.count++
	mark := fmt.Sprintf("<done %d>", sh.count)
	fmt.Fprintf(sh.in, "%s\necho '%s'\n", st.command, mark)
	var lines []string
	limit := time.After(stepLimit)
	for done := false; ; {
		if done && matches(lines, st.want) {
			return "", true
		}
		settle := limit
		if done && len(lines) >= len(st.want) {
			settle = time.After(500 * time.Millisecond)
		}
		select {
		case line, open := <-sh.lines:
			switch {
			case !open:
				return strings.Join(append(lines, "<shell ended>"), "\n"), false
			case strings.HasSuffix(line, mark):
				done = true
				if line != mark { // output without a newline at its end
					lines = append(lines, strings.TrimSuffix(line, mark))
				}
			default:
				lines = append(lines, line)
			}
		case <-settle:
			return strings.Join(lines, "\n"), false
		}
	}
}

// matches compares output with what is wanted; "..." stands for any lines.
func matches(got, want []string) bool {
	var re strings.Builder
	re.WriteString("^")
	for _, w := range want {
		if w == "..." {
			re.WriteString("(?:.*\n)*")
			continue
		}
		re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(w), `\.\.\.`, ".*") + "\n")
	}
	re.WriteString("$")
	text := ""
	for _, g := range got {
		text += g + "\n"
	}
	return regexp.MustCompile(re.String()).MatchString(text)
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		got, want string
		ok        bool
	}{
		{"a\nb", "a\nb", true},
		{"a\nb", "a", false},
		{"a", "a\nb", false},
		{"a\nx\ny\nb", "a\n...\nb", true},
		{"a\nb", "a\n...\nb", true},
		{"pid 12 ended", "pid ... ended", true},
		{"", "a", false},
	} {
		if ok := matches(strings.Split(tc.got, "\n"), strings.Split(tc.want, "\n")); ok != tc.ok {
			t.Errorf("matches(%q, %q) = %v", tc.got, tc.want, ok)
		}
	}
}
