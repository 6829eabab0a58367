package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn/envd/internal/reap"
)

const nobody = 65534

// writeFile makes a file of that mode, whatever the umask.
func writeFile(t testing.TB, path, text string, mode os.FileMode) string {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), mode))
	must(t, os.Chmod(path, mode))
	return path
}

// tempDir is a directory that everybody may enter.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "process-test-") //nolint:usetesting // its parents are closed to others
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

// Every reason not to start is typed, immediate, leaves nothing behind, and
// does not sound like an unknown process.
func TestStartErrors(t *testing.T) {
	dir := tempDir(t)
	secret := filepath.Join(dir, "secret")
	must(t, os.Mkdir(secret, 0o700))
	must(t, os.Mkdir(filepath.Join(secret, "below"), 0o755))
	plain := writeFile(t, filepath.Join(dir, "plain"), "#!/bin/sh\n", 0o644)
	script := writeFile(t, filepath.Join(dir, "script"), "echo no shebang\n", 0o755)
	orphan := writeFile(t, filepath.Join(dir, "orphan"), "#!/nonexistent/interpreter\n", 0o755)
	private := writeFile(t, filepath.Join(dir, "private"), "#!/bin/sh\n", 0o700)
	broken := writeFile(t, filepath.Join(dir, "broken"), "\x7fELF\x02\x01\x01 and no more", 0o755)
	notFound := writeFile(t, filepath.Join(dir, "not found"), "", 0o644)
	busy, err := os.OpenFile(writeFile(t, filepath.Join(dir, "busy"), "#!/bin/true\n", 0o755), os.O_WRONLY, 0)
	must(t, err)
	defer busy.Close()
	loop := filepath.Join(dir, "loop")
	must(t, os.Symlink("loop", loop))

	tests := map[string]struct {
		change func(*Spec)
		kind   StartKind
		text   string
	}{
		"empty command":       {func(s *Spec) { s.Name = "" }, Invalid, "empty command"},
		"NUL in command":      {func(s *Spec) { s.Name = "a\x00b" }, Invalid, "NUL"},
		"NUL in argument":     {func(s *Spec) { s.Args = []string{"a\x00b"} }, Invalid, "NUL"},
		"NUL in environment":  {func(s *Spec) { s.Env = append(s.Env, "A=\x00") }, Invalid, "NUL"},
		"NUL in cwd":          {func(s *Spec) { s.Dir = "/\x00" }, Invalid, "NUL"},
		"NUL in tag":          {func(s *Spec) { s.Tag = "\x00" }, Invalid, "NUL"},
		"long tag":            {func(s *Spec) { s.Tag = strings.Repeat("x", maxTag+1) }, Invalid, "tag of 4097 bytes"},
		"nameless variable":   {func(s *Spec) { s.Env = append(s.Env, "=x") }, Invalid, "without a name"},
		"no such command":     {func(s *Spec) { s.Name = "no-such-command" }, NoCommand, "no such command"},
		"nor its directory":   {func(s *Spec) { s.Name = "no-such-command"; s.Dir = dir + "/missing" }, Invalid, "cwd"},
		"no PATH":             {func(s *Spec) { s.Env = nil }, NoCommand, "no such command"},
		"no such path":        {func(s *Spec) { s.Name = dir + "/missing" }, NoCommand, "no such command"},
		"below a file":        {func(s *Spec) { s.Name = plain + "/x" }, NoCommand, "no such command"},
		"named not found":     {func(s *Spec) { s.Name = "not found" }, NoCommand, "no such command"},
		"path not found":      {func(s *Spec) { s.Name = notFound }, Permission, "not executable"},
		"no interpreter":      {func(s *Spec) { s.Name = orphan }, NoCommand, "interpreter"},
		"not executable":      {func(s *Spec) { s.Name = plain }, Permission, "not executable"},
		"directory":           {func(s *Spec) { s.Name = dir }, Permission, "not executable"},
		"in PATH, not exec":   {func(s *Spec) { s.Name = "plain"; s.Env = []string{"PATH=" + dir} }, Permission, "not executable"},
		"of another user":     {func(s *Spec) { s.Name = private; s.User.UID = nobody; s.User.GID = nobody }, Permission, "not executable"},
		"no shebang":          {func(s *Spec) { s.Name = script }, Invalid, "bad executable format"},
		"broken program":      {func(s *Spec) { s.Name = broken }, Invalid, "bad executable format"},
		"being written":       {func(s *Spec) { s.Name = busy.Name() }, Unmet, "being written"},
		"loop":                {func(s *Spec) { s.Name = loop }, Invalid, "command"},
		"long name":           {func(s *Spec) { s.Name = "/" + strings.Repeat("x", 300) }, Invalid, "command"},
		"missing cwd":         {func(s *Spec) { s.Dir = dir + "/missing" }, Invalid, dir + "/missing"},
		"missing cwd by name": {func(s *Spec) { s.Dir = dir + "/was not found" }, Invalid, "does not exist"},
		"file as cwd":         {func(s *Spec) { s.Dir = plain }, Invalid, "not a directory"},
		"forbidden cwd":       {func(s *Spec) { s.Dir = secret; s.User.UID = nobody; s.User.GID = nobody }, Permission, "cwd " + secret},
		"forbidden way to it": {func(s *Spec) { s.Dir = secret + "/below"; s.User.UID = nobody; s.User.GID = nobody }, Permission, "cwd " + secret + "/below"},
		"long argument":       {func(s *Spec) { s.Args = []string{strings.Repeat("x", 1<<20)} }, Invalid, "too long"},
		"many arguments":      {func(s *Spec) { s.Args = strings.Split(strings.Repeat("xxxxxxx ", 1<<19), " ") }, Invalid, "too long"},
		"limits":              {func(s *Spec) { s.Limits.MemoryBytes = 1 << 20 }, Unmet, "limits"},
	}
	bothModes(t, func(t *testing.T, r *rig) {
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				for _, terminal := range []bool{false, true} {
					s := spec("true")
					tt.change(s)
					if terminal {
						onTerminal(s)
					}
					began := time.Now()
					p, c, err := r.table.Start(s)
					if d := time.Since(began); d > 2*time.Second {
						t.Errorf("took %v", d)
					}
					if p != nil || c != nil {
						t.Fatal("a process beside the error")
					}
					se, ok := errors.AsType[*StartError](err)
					if !ok || se.Kind != tt.kind || !strings.Contains(se.Error(), tt.text) {
						t.Fatalf("error %v of kind %v, want kind %d with %q", err, se, tt.kind, tt.text)
					}
					if strings.Contains(err.Error(), "not found") {
						t.Errorf("text %q means an unknown process", err)
					}
				}
			})
		}
		if n := len(r.table.List(true)); n != 0 {
			t.Errorf("%d processes in the list", n)
		}
	})
}

// Too many processes of the user is told apart from what cannot run at all.
func TestStartTooManyProcesses(t *testing.T) {
	const uid = 54321
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NPROC, &before))
	bothModes(t, func(t *testing.T, r *rig) {
		// Root is not held to the limit. The change of user is, when those that
		// run before it exceed it, and makes the exec fail.
		must(t, unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1, Max: before.Max}))
		defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NPROC, &before)) }()
		for range 2 {
			s := spec("sleep", "300")
			s.User = Credential{UID: uid, GID: uid}
			_, rd := r.start(s)
			defer rd.close()
		}
		s := spec("true")
		s.User = Credential{UID: uid, GID: uid}
		_, _, err := r.table.Start(s)
		if se, ok := errors.AsType[*StartError](err); !ok || se.Kind != Exhausted || !errors.Is(err, unix.EAGAIN) {
			t.Errorf("start: %v", err)
		}
	})
}

// Whatever a start finds no descriptor for, that is what it says, and nothing
// stays open.
func TestStartTooManyDescriptors(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		_, rd := r.start(spec("true")) // what is opened once is open
		rd.all()
		rd.close()
		var before unix.Rlimit
		must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
		defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) }()
		failed := 0
		for limit := uint64(3); ; limit++ {
			must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: before.Max}))
			p, c, err := r.table.Start(spec("true"))
			if err == nil {
				c.Close()
				wait(t, "the end", p.exited)
				break
			}
			if se, ok := errors.AsType[*StartError](err); !ok || se.Kind != Exhausted {
				t.Errorf("limit %d: %v", limit, err)
			}
			failed++
		}
		if failed < 10 {
			t.Errorf("%d starts failed", failed)
		}
	})
}

// A PATH entry that the user may not enter does not hide the ones after it.
func TestStartSkipsForbiddenPath(t *testing.T) {
	dir := tempDir(t)
	secret, open := filepath.Join(dir, "secret"), filepath.Join(dir, "open")
	must(t, os.MkdirAll(filepath.Join(secret, "bin"), 0o755))
	must(t, os.Mkdir(open, 0o755))
	must(t, os.Chmod(secret, 0o700))
	writeFile(t, filepath.Join(secret, "bin/tool"), "#!/bin/sh\necho secret\n", 0o755)
	writeFile(t, filepath.Join(open, "tool"), "#!/bin/sh\necho open\n", 0o755)
	bothModes(t, func(t *testing.T, r *rig) {
		s := spec("tool")
		s.Env = []string{"PATH=" + secret + "/bin:" + open}
		if out, _ := r.run(s); out != "secret\n" {
			t.Errorf("root runs %q", out)
		}
		s.User = Credential{UID: nobody, GID: nobody}
		if out, _ := r.run(s); out != "open\n" {
			t.Errorf("nobody runs %q", out)
		}
		s.Env = []string{"PATH=" + secret + "/bin"}
		_, _, err := r.table.Start(s)
		if se, ok := errors.AsType[*StartError](err); !ok || se.Kind != Permission {
			t.Errorf("nobody in the secret PATH: %v", err)
		}
	})
}

// The command is looked up in the PATH it is given, relative to its directory.
func TestStartLookup(t *testing.T) {
	dir := tempDir(t)
	writeFile(t, filepath.Join(dir, "tool"), "#!/bin/sh\necho $0 in $PWD\n", 0o755)
	bothModes(t, func(t *testing.T, r *rig) {
		for _, tt := range []struct{ name, path string }{
			{"tool", dir}, {"./tool", "/bin"}, {dir + "/tool", ""}, {"tool", "/nonexistent::/bin"}, {"tool", "."},
		} {
			s := spec(tt.name)
			s.Dir, s.Env = dir, []string{"PATH=/nonexistent", "PATH=" + tt.path}
			if out, _ := r.run(s); !strings.HasSuffix(out, "tool in "+dir+"\n") {
				t.Errorf("%q in PATH %q: %q", tt.name, tt.path, out)
			}
		}
		s := spec("tool", "a")
		s.Name = "env"
		s.Args = nil
		out, _ := r.run(s)
		if r.groups != nil && out != strings.Join(s.Env, "\n")+"\n" {
			t.Errorf("environment %q", out)
		}
	})
}

// Cloning into a group that somebody removed looks like a missing command; it
// is not told as one.
func TestStartIntoARemovedGroup(t *testing.T) {
	r := newRig(t, DefaultConfig(), true)
	g, err := r.table.group(spec("true"))
	must(t, err)
	must(t, unix.Rmdir(g.Dir().Name()))
	if !g.Removed() {
		t.Error("the group does not know")
	}
	// A class that is gone is made again.
	must(t, unix.Rmdir(filepath.Dir(g.Dir().Name())))
	_, exit := r.run(spec("true"))
	wantExit(t, exit, "exit status 0")
	g.Release(func() {})
}

func TestStartWhileClosing(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		table := r.table
		r.close()
		_, _, err := table.Start(spec("true"))
		wantError(t, err, ErrClosed)
	})
}

// What a program gets: descriptors 0, 1 and 2, blocking ones, and its place.
func TestStartedProgramSees(t *testing.T) {
	bothModes(t, func(t *testing.T, r *rig) {
		if out, _ := r.run(spec("ls", "/proc/self/fd")); out != "0\n1\n2\n3\n" { // 3 is the listing
			t.Errorf("descriptors %q", out)
		}
		for name, s := range map[string]*Spec{
			"no stdin": helper(t, "stdin-mode"), "stdin": withStdin(helper(t, "stdin-mode")),
			"terminal": onTerminal(helper(t, "stdin-mode")),
		} {
			out, _ := r.run(s)
			if got := strings.ReplaceAll(out, "\r", ""); got != "0 false\n1 false\n2 false\n" {
				t.Errorf("%s: non-blocking descriptors: %q", name, got)
			}
		}
		if r.groups == nil {
			return
		}
		for class, s := range map[string]*Spec{"pty": onTerminal(shell("cat /proc/self/cgroup")), "user": shell("cat /proc/self/cgroup")} {
			if out, _ := r.run(s); !strings.Contains(out, "/wrenn/"+class+"/") {
				t.Errorf("%s runs in %q", class, out)
			}
		}
	})
}

// freezer answers what freezes ("1") and thaws ("0") the group that all commands
// without a terminal are in.
func freezer(t *testing.T, r *rig) (freeze func(on string)) {
	t.Helper()
	p, rd := r.start(spec("true"))
	file := filepath.Join(filepath.Dir(p.group.Dir().Name()), "cgroup.freeze")
	_, exit := rd.all()
	wantExit(t, exit, "exit status 0")
	return func(on string) { must(t, os.WriteFile(file, []byte(on), 0)) }
}

// TestStuckStart checks a program that the kernel does not get to run for a
// while, as on a file system whose server is away: others start and end
// meanwhile, the collector goes on, and it starts once it can.
func TestStuckStart(t *testing.T) {
	r := newRig(t, DefaultConfig(), true)
	freeze := freezer(t, r)
	freeze("1")
	defer freeze("0")
	var stuck sync.WaitGroup
	defer stuck.Wait()
	stuck.Go(func() {
		_, rd := r.start(shell("exit 3"))
		_, exit := rd.all()
		wantExit(t, exit, "exit status 3")
	})
	eventually(t, "the child to be there", func() bool { return children(t) == 1 })
	runtime.GC()
	terminal := spec("true")
	terminal.Terminal = &Size{Cols: 80, Rows: 24}
	_, rd := r.start(terminal) // in another group
	_, exit := rd.all()
	wantExit(t, exit, "exit status 0")
	freeze("0")
}

// TestCloseWithAStuckStart checks that such a start does not keep the daemon from
// its end.
func TestCloseWithAStuckStart(t *testing.T) {
	r := newRig(t, DefaultConfig(), true)
	freezer(t, r)("1")
	var stuck sync.WaitGroup
	table := r.table
	stuck.Go(func() {
		if _, _, err := table.Start(spec("true")); !errors.Is(err, reap.ErrStuck) {
			t.Errorf("%v", err)
		}
	})
	eventually(t, "the child to be there", func() bool { return children(t) == 1 })
	began := time.Now()
	r.close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("closed after %v", took)
	}
	stuck.Wait()
}

// TestStartOnADeadFileSystem starts a program, and one in a directory, of a file
// system whose server never answers. Neither holds up more than its own start,
// which ends like one that is stuck.
func TestStartOnADeadFileSystem(t *testing.T) {
	dir := deadFileSystem(t)
	inside := spec("true")
	inside.Dir = filepath.Join(dir, "home")
	for name, s := range map[string]*Spec{"program": spec(filepath.Join(dir, "program")), "directory": inside} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, DefaultConfig(), true)
			ended := make(chan error, 1)
			go func() { _, _, err := r.table.Start(s); ended <- err }()
			eventually(t, "the child to be there", func() bool { return children(t) == 1 })
			r.run(spec("true"))
			r.reaper.GiveUp() // as it does itself when it has been patient
			select {
			case err := <-ended:
				if e, ok := errors.AsType[*StartError](err); !ok || e.Kind != Unmet || !errors.Is(err, reap.ErrStuck) {
					t.Errorf("%v", err)
				}
			case <-time.After(patience):
				t.Error("the start does not end")
			}
		})
	}
}

// deadFileSystem mounts one whose server takes no request.
func deadFileSystem(t *testing.T) string {
	t.Helper()
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	must(t, err)
	dir := t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0", server.Fd())
	err = unix.Mount("dead", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options)
	t.Cleanup(func() {
		must(t, server.Close()) // who waits for an answer has an error
		must(t, unix.Unmount(dir, unix.MNT_DETACH))
	})
	must(t, err)
	return dir
}

func TestStuckStartError(t *testing.T) {
	err := spec("true").startError("/mnt/away/true", reap.ErrStuck)
	e, ok := errors.AsType[*StartError](err)
	if !ok || e.Kind != Unmet || !strings.Contains(err.Error(), "/mnt/away/true does not get to run") {
		t.Errorf("%v", err)
	}
}
