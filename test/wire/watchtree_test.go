package wire

import (
	"bufio"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	fs "github.com/wrenn/envd/gen/filesystem"
)

// shakeVar makes the test binary one of the processes that change a tree.
const shakeVar = "ENVD_WIRE_SHAKE"

// node is a file or directory of a model, which does not tell them apart.
type node map[string]node

// model is a tree kept by its events alone, as docs/FILESYSTEM.md says a
// client may.
type model struct {
	root node
	away map[string]node // renamed away, by old name
}

// modelOf begins with the tree as it is.
func modelOf(t *testing.T, dir string) *model {
	t.Helper()
	m := &model{root: node{}, away: map[string]node{}}
	for _, p := range treeOf(t, dir) {
		m.apply(&fs.FilesystemEvent{Type: fs.EventType_EVENT_TYPE_CREATE, Name: p})
	}
	return m
}

// place finds the directory that holds a name, nil if the model has none.
func (m *model) place(name string) (node, string) {
	dir := m.root
	for {
		head, tail, deeper := strings.Cut(name, "/")
		if !deeper || dir == nil {
			return dir, name
		}
		dir, name = dir[head], tail
	}
}

func (m *model) apply(e *fs.FilesystemEvent) {
	dir, name := m.place(e.Name)
	if dir == nil {
		return
	}
	switch e.Type {
	case fs.EventType_EVENT_TYPE_CREATE:
		moved, ok := m.away[e.GetFrom()]
		if dir[name] = moved; !ok || e.From == nil {
			dir[name] = node{}
		}
		delete(m.away, e.GetFrom())
	case fs.EventType_EVENT_TYPE_RENAME:
		delete(m.away, e.Name)
		if moved, ok := dir[name]; ok {
			m.away[e.Name] = moved
		}
		delete(dir, name)
	case fs.EventType_EVENT_TYPE_REMOVE:
		delete(dir, name)
	}
}

func (m *model) paths() (all []string) {
	var walk func(string, node)
	walk = func(at string, n node) {
		for name, below := range n {
			all = append(all, at+name)
			walk(at+name+"/", below)
		}
	}
	walk("", m.root)
	slices.Sort(all)
	return all
}

// treeOf is all that is below dir.
func treeOf(t *testing.T, dir string) (all []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ iofs.DirEntry, err error) error {
		if path != dir {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	slices.Sort(all)
	return all
}

// wantTree compares the model with the tree.
func (m *model) wantTree(t *testing.T, dir string) {
	t.Helper()
	got, want := m.paths(), treeOf(t, dir)
	for _, p := range got {
		if _, ok := slices.BinarySearch(want, p); !ok {
			t.Errorf("the events tell of %q, which is not there", p)
		}
	}
	for _, p := range want {
		if _, ok := slices.BinarySearch(got, p); !ok {
			t.Errorf("the events do not tell of %q", p)
		}
	}
}

// upTo applies events up to one of that name; false at the end of the stream.
func (m *model) upTo(w *watching, mark string) (events int, ok bool) {
	for {
		e := w.read()
		if e == nil {
			return events, false
		}
		m.apply(e)
		if events++; e.Name == mark {
			return events, true
		}
	}
}

// ramDir is a directory in memory: on disk the operations take most of the time.
func ramDir(t *testing.T) string {
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// TestWatchTools checks that what real programs do to a tree comes whole.
func TestWatchTools(t *testing.T) {
	files(t, func(t *testing.T, c *call) {
		dir, other := userDir(t), t.TempDir()
		sh := func(script string) {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "OTHER="+other, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
				"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", script, err, out)
			}
		}
		sh(`cd $OTHER; git init -q repo; cd repo; mkdir -p a/b/c d; for i in 1 2 3 4 5 6 7 8; do echo $i >a/b/c/$i; echo $i >d/$i; done
			git add .; git commit -qm first; tar cf $OTHER/tar .`)
		w := c.watchDir(bounded(t), &fs.WatchDirRequest{Path: dir, Recursive: true})
		m := modelOf(t, dir)
		for i, script := range []string{
			`mkdir -p a/b/c; touch a/b/c/f`,
			`git clone -q $OTHER/repo clone`,
			`mkdir tar; tar xf $OTHER/tar -C tar`,
			`mv clone/a tar/moved; cp -r tar/moved copy; rm -rf tar`,
		} {
			mark := fmt.Sprint("mark", i)
			sh(script + "; touch " + mark)
			if _, ok := m.upTo(w, mark); !ok {
				t.Fatalf("%s: stream ended: %v", script, w.err)
			}
			m.wantTree(t, dir)
		}
	})
}

// TestWatchTorture has four processes change a tree of 1,000 directories at
// once. In step with the reader nothing may be lost; without, the tree is right
// or the stream ends with data_loss.
func TestWatchTorture(t *testing.T) {
	t.Parallel()
	const processes, each = 4, 500
	for _, row := range []struct {
		kind   string
		rounds int
		inStep bool
	}{{"connect-proto-h2c", 5, true}, {"sdk-json-http1", 3, true}, {"grpc", 3, false}} {
		t.Run(fmt.Sprintf("%s in step %v", row.kind, row.inStep), func(t *testing.T) {
			c := callerOf(t, daemons[len(daemons)-1], row.kind)
			base := ramDir(t)
			dir := base + "/tree"
			must(t, os.Mkdir(base+"/outside", 0o755))
			for i := range 1000 {
				must(t, os.MkdirAll(fmt.Sprintf("%s/d%d/d%d/d%d", dir, i/100, i/10%10, i%10), 0o755))
			}
			w := c.watchDir(t.Context(), &fs.WatchDirRequest{Path: dir, Recursive: true})
			m := modelOf(t, dir)
			seed := time.Now().UnixNano()
			t.Logf("seed %d", seed)
			var all []*shaking
			for i := range processes {
				all = append(all, startShaking(t, base, seed+int64(i), each))
			}
			events, lost := 0, false
			for round := range row.rounds {
				for _, s := range all {
					s.begin()
				}
				for _, s := range all {
					s.await()
				}
				if !row.inStep && round < row.rounds-1 {
					continue
				}
				mark := fmt.Sprint("mark", round)
				writeFile(t, filepath.Join(dir, mark), "")
				n, ok := m.upTo(w, mark)
				events += n
				if lost = !ok; lost {
					break
				}
			}
			t.Logf("%d operations, %d events, %d entries left", processes*each*row.rounds, events, len(treeOf(t, dir)))
			if lost {
				if row.inStep || connect.CodeOf(w.err) != connect.CodeDataLoss {
					t.Errorf("stream ended: %v", w.err)
				}
				return
			}
			m.wantTree(t, dir)
		})
	}
}

// callerOf is a caller of that kind.
func callerOf(t *testing.T, d *daemon, kind string) *call {
	for _, k := range kinds {
		if k.name == kind {
			return &call{t: t, d: d, kind: kind, caller: k.make(d)}
		}
	}
	t.Fatalf("no kind %s", kind)
	return nil
}

// shaking is a process that changes a tree, one batch of operations for each
// line it is sent.
type shaking struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func startShaking(t *testing.T, base string, seed int64, each int) *shaking {
	t.Helper()
	cmd := exec.Command(os.Args[0], base, strconv.FormatInt(seed, 10), strconv.Itoa(each))
	cmd.Env = append(os.Environ(), shakeVar+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		must(t, cmd.Wait())
	})
	return &shaking{t: t, in: in, out: bufio.NewReader(out)}
}

func (s *shaking) begin() {
	s.t.Helper()
	_, err := io.WriteString(s.in, "\n")
	must(s.t, err)
}

func (s *shaking) await() {
	s.t.Helper()
	_, err := s.out.ReadString('\n')
	must(s.t, err)
}

// shakeMain is the life of such a process.
func shakeMain(args []string) int {
	seed, _ := strconv.ParseInt(args[1], 10, 64)
	each, _ := strconv.Atoi(args[2])
	s := &shaker{base: args[0], r: rand.New(rand.NewPCG(uint64(seed), 2)), id: args[1]}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for done, tries := 0, 0; done < each && tries < 20*each; tries++ {
			if s.step() == nil {
				done++
			}
		}
		fmt.Println("done")
	}
	return 0
}

type shaker struct {
	base string
	id   string // keeps what the processes move out apart
	r    *rand.Rand
	out  int // moved outside and not back yet
}

func (s *shaker) dir(depth int) string {
	p := s.base + "/tree"
	for range depth {
		p += "/d" + strconv.Itoa(s.r.IntN(10))
	}
	return p
}

func (s *shaker) file() string { return s.dir(s.r.IntN(4)) + "/f" + strconv.Itoa(s.r.IntN(4)) }
func (s *shaker) any() string  { return s.dir(1 + s.r.IntN(4)) }

// step tries one change.
func (s *shaker) step() error {
	outside := fmt.Sprintf("%s/outside/%s-%d", s.base, s.id, s.out)
	switch n := s.r.IntN(20); {
	case n < 6:
		return os.WriteFile(s.file(), []byte("x"), 0o644)
	case n < 9:
		return os.Rename(s.file(), s.file())
	case n < 11:
		return os.Rename(s.any(), s.any())
	case n < 14:
		p := s.any()
		if err := os.Mkdir(p, 0o755); err != nil {
			return err
		}
		return os.WriteFile(p+"/f0", nil, 0o644)
	case n < 15:
		return os.MkdirAll(s.dir(5), 0o755)
	case n < 17:
		return os.Remove(s.file())
	case n < 18:
		return os.Remove(s.any())
	case n < 19:
		s.out++
		return os.Rename(s.dir(3), fmt.Sprintf("%s/outside/%s-%d", s.base, s.id, s.out))
	default:
		if err := os.Rename(outside, s.any()); err != nil {
			return err
		}
		s.out--
		return nil
	}
}
