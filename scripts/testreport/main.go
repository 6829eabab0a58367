// Command testreport reads the events of go test -json and prints what go test
// would: a line per package, and all that failed tests said. It adds a list of
// the skipped tests with their reasons, and ends with the line
//
//	N passed, N failed, N skipped
//
// which counts tests and subtests. A package that fails by itself, because it
// does not build, or its TestMain or a time limit ends it, counts as a failed
// test.
//
// It exits 1 when something failed, was skipped, or nothing ran at all. With
// -skips-ok skipped tests are listed only.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	skipsOK := flag.Bool("skips-ok", false, "exit 0 though tests were skipped")
	flag.Parse()
	r := newReport(os.Stdout)
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "testreport: read events: %v\n", err)
		os.Exit(1)
	}
	r.end()
	if r.failed > 0 || r.passed == 0 || r.skipped > 0 && !*skipsOK {
		os.Exit(1)
	}
}

// event is a line of go test -json; see go doc test2json and go help buildjson.
type event struct {
	Action, Package, Test, Output string
}

// test names a test; the empty name stands for what a package itself says.
type test struct{ pkg, name string }

type report struct {
	w                       io.Writer
	passed, failed, skipped int
	output                  map[test][]string // of what runs, in lines
	failures                map[string]int    // of a package
	skips                   []string
}

func newReport(w io.Writer) *report {
	return &report{w: w, output: map[test][]string{}, failures: map[string]int{}}
}

func (r *report) read(events io.Reader) error {
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 64<<20) // a line holds a line of output, of any length
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			r.print(lines.Text() + "\n") // a complaint of the go command itself
			continue
		}
		r.add(e)
	}
	return lines.Err()
}

func (r *report) add(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		r.print(e.Output)
	case "start", "run":
		r.output[t] = nil
	case "output":
		r.output[t] = append(r.output[t], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(t, e.Action)
		} else {
			r.endTest(t, e.Action)
		}
	}
}

func (r *report) endTest(t test, action string) {
	switch action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		r.failures[t.pkg]++
		r.print(r.output[t]...)
	case "skip":
		r.skipped++
		reason := slices.DeleteFunc(r.output[t], func(line string) bool {
			return strings.HasPrefix(line, "=== ") || strings.HasPrefix(strings.TrimSpace(line), "--- SKIP")
		})
		r.skips = append(r.skips, fmt.Sprintf("SKIP %s %s: %s", t.pkg, t.name, strings.TrimSpace(strings.Join(reason, ""))))
	}
	delete(r.output, t)
}

// endPackage prints all that a failed package said, and the last line, which is
// go test's verdict, of another one.
func (r *report) endPackage(t test, action string) {
	lines := r.output[t]
	delete(r.output, t)
	if action == "fail" {
		// Tests that never ended: the package was cut off, and they say why.
		for _, u := range slices.SortedFunc(maps.Keys(r.output), func(a, b test) int { return strings.Compare(a.name, b.name) }) {
			if u.pkg == t.pkg {
				r.endTest(u, "fail")
			}
		}
		if r.failures[t.pkg] == 0 {
			r.failed++
		}
	} else if len(lines) > 0 {
		lines = lines[len(lines)-1:]
	}
	r.print(lines...)
}

// end prints what is known when there are no more events.
func (r *report) end() {
	for t := range r.output {
		if t.name == "" { // go test itself was cut off
			r.print("unfinished: " + t.pkg + "\n")
			r.endPackage(t, "fail")
		}
	}
	for _, s := range r.skips {
		r.print(s + "\n")
	}
	r.print(fmt.Sprintf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped))
}

func (r *report) print(lines ...string) {
	for _, line := range lines {
		_, _ = io.WriteString(r.w, line)
	}
}
