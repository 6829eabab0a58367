package process

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	rest := " 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2 3"
	for name, tt := range map[string]struct {
		text string
		want task
		ok   bool
	}{
		"plain":  {"12 (sh) S" + rest, task{taskID{12, "4242"}, 7, 9, false}, true},
		"zombie": {"12 (sh) Z" + rest, task{taskID{12, "4242"}, 7, 9, true}, true},
		"dead":   {"12 (sh) X" + rest, task{taskID{12, "4242"}, 7, 9, true}, true},
		"odd":    {"12 (a) S 1 1 1 (b c) R" + rest, task{taskID{12, "4242"}, 7, 9, false}, true},
		"line":   {"12 (a\n) S" + rest, task{taskID{12, "4242"}, 7, 9, false}, true},
		"empty":  {"", task{}, false},
		"short":  {"12 (sh) S 7 8 9", task{}, false},
		"words":  {"12 (sh) S a b c" + rest, task{}, false},
	} {
		if got, ok := parseStat(12, tt.text); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, got, ok, tt.want, tt.ok)
		}
	}
	self, ok := readTask(os.Getpid())
	if !ok || self.parent != os.Getppid() || self.zombie {
		t.Errorf("we are %+v, %v", self, ok)
	}
}

func TestFindMark(t *testing.T) {
	for env, want := range map[string]string{
		"":                                   "",
		"A=1\x00ENVD_COMMAND=x-1\x00B=2\x00": "x-1",
		"ENVD_COMMAND=x-1":                   "x-1",
		"ENVD_COMMAND=\x00":                  "",
		"XENVD_COMMAND=x\x00ENVD_COMMANDS=y": "",
		"A=ENVD_COMMAND=x":                   "",
	} {
		if got := findMark([]byte(env)); got != want {
			t.Errorf("mark of %q is %q, want %q", env, got, want)
		}
	}
}

// Members are found by parent, session and mark. When the leader's number is
// another's, neither that process nor its session is touched.
func TestTreeMembers(t *testing.T) {
	all := map[int]task{}
	add := func(pid, parent, session int, zombie bool) {
		all[pid] = task{taskID{pid, strconv.Itoa(pid)}, parent, session, zombie}
	}
	add(1, 0, 1, false)
	add(100, 1, 100, false)   // the leader
	add(101, 100, 100, false) // its child
	add(102, 101, 102, false) // its child's, in its own session
	add(103, 1, 100, false)   // an orphan in the session
	add(104, 1, 104, false)   // an orphan with the mark
	add(105, 104, 105, false) // that one's child
	add(106, 100, 100, true)  // a zombie
	add(200, 1, 200, false)   // somebody else
	marks := make(map[int]string)
	for pid := range all {
		marks[pid] = ""
	}
	marks[104] = "m"
	for name, tt := range map[string]struct {
		gone bool
		drop int
		want []int
	}{
		"running":               {false, 0, []int{100, 101, 102, 103, 104, 105}},
		"gone":                  {true, 100, []int{101, 102, 103, 104, 105}},
		"gone, number in use":   {true, 0, []int{104, 105}},
		"running, not yet seen": {false, 100, []int{101, 102, 103, 104, 105}},
	} {
		tasks := make(map[int]task)
		for pid, k := range all {
			if pid != tt.drop {
				tasks[pid] = k
			}
		}
		tree := tree{leader: 100, gone: func() bool { return tt.gone }, mark: "m"}
		var got []int
		for _, m := range tree.members(&snapshot{tasks: tasks, marks: marks}) {
			got = append(got, m.pid)
		}
		slices.Sort(got)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: members %v, want %v", name, got, tt.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("12 (sh) S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2 3")
	f.Add("1 ((sd-pam)) S")
	f.Fuzz(func(t *testing.T, text string) {
		k, ok := parseStat(5, text)
		if !ok {
			if k != (task{}) {
				t.Errorf("%+v beside a failure", k)
			}
			return
		}
		if k.pid != 5 || k.started == "" || strings.ContainsAny(k.started, " )") {
			t.Errorf("%q is %+v", text, k)
		}
	})
}

func FuzzFindMark(f *testing.F) {
	f.Add([]byte("A=1\x00ENVD_COMMAND=x-1\x00B=2\x00"))
	f.Fuzz(func(t *testing.T, env []byte) {
		m := findMark(env)
		if strings.Contains(m, "\x00") || m != "" && !strings.Contains(string(env), markName+"="+m) {
			t.Errorf("mark %q of %q", m, env)
		}
	})
}
