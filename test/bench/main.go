package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/wrenn/envd/test/cgroups"
)

// figure is one subject of measurement; it may give several rows.
type figure struct {
	name string
	run  func(*bench) ([]row, error)
}

// figures in the order of the table.
var figures = []figure{
	{"size", binarySize},
	{"cold", coldStart},
	{"exec", execLatency},
	{"exec-idle", execBesideIdle},
	{"parallel", execRate},
	{"stdout", stdoutSpeed},
	{"slow", slowNeighbour},
	{"echo", terminalEcho},
	{"list", listings},
	{"watch", watchSetup},
	{"idlecpu", idleCPU},
	{"memory", idleMemory},
	{"memory-h2", idleMemoryH2},
	{"snapshot", snapshots},
	{"ports", forwardedPorts},
	{"health", healthUnderLoad},
	{"files", fileSpeed},
	{"small-files", smallFiles},
	{"compression", compression},
	{"file-memory", fileMemory},
}

// row is a line of the table.
type row struct {
	name   string
	unit   string
	ours   float64
	floor  float64 // 0 when the target is absolute
	target string
	ok     bool
}

// limit makes the row of a figure that has to be at most target times its floor.
func limit(name, unit string, ours, floor, target float64) row {
	return row{
		name: name, unit: unit, ours: ours, floor: floor,
		target: fmt.Sprintf("<= %.2fx", target), ok: ours <= target*floor,
	}
}

// share makes the row of a figure that has to be at least target of its floor.
func share(name, unit string, ours, floor, target float64) row {
	return row{
		name: name, unit: unit, ours: ours, floor: floor,
		target: fmt.Sprintf(">= %.2fx", target), ok: ours >= target*floor,
	}
}

// absolute makes the row of a figure that has to be at most target itself.
func absolute(name, unit string, ours, target float64) row {
	return row{name: name, unit: unit, ours: ours, target: "<= " + amount(target, unit), ok: ours <= target}
}

func amount(v float64, unit string) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f %s", v, unit)
	case v >= 10:
		return fmt.Sprintf("%.1f %s", v, unit)
	default:
		return fmt.Sprintf("%.3g %s", v, unit)
	}
}

func main() {
	quick := flag.Bool("quick", false, "seconds instead of minutes: whether it works, not how fast it is")
	only := flag.String("only", "", "comma-separated `names` of the figures to measure")
	root := flag.String("cgroup-root", cgroups.Mount(), "cgroup v2 `directory` to make the daemon's own group in")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	rows, err := run(config{quick: *quick, only: *only, cgroupRoot: *root, progress: os.Stderr})
	printTable(os.Stdout, rows)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures what cfg asks for. Rows come back also beside an error.
func run(cfg config) (rows []row, err error) {
	selected, err := choose(cfg.only)
	if err != nil {
		return nil, err
	}
	b, err := open(cfg)
	if err != nil {
		return nil, err
	}
	defer b.close()
	for _, f := range selected {
		fmt.Fprintln(cfg.progress, "measuring", f.name)
		more, err := f.run(b)
		rows = append(rows, more...)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return rows, nil
}

// choose finds the figures of those names, all of them for "".
func choose(names string) ([]figure, error) {
	if names == "" {
		return figures, nil
	}
	var chosen []figure
	known := make([]string, len(figures))
	for i, f := range figures {
		known[i] = f.name
	}
next:
	for name := range strings.SplitSeq(names, ",") {
		for _, f := range figures {
			if f.name == name {
				chosen = append(chosen, f)
				continue next
			}
		}
		return nil, fmt.Errorf("no figure %q; there are %s", name, strings.Join(known, ", "))
	}
	return chosen, nil
}

func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tours\tfloor\tratio\ttarget\t")
	for _, r := range rows {
		floor, ratio, verdict := "-", "-", "MISS"
		if r.floor > 0 {
			floor, ratio = amount(r.floor, r.unit), fmt.Sprintf("%.2fx", r.ours/r.floor)
		}
		if r.ok {
			verdict = "ok"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, amount(r.ours, r.unit), floor, ratio, r.target, verdict)
	}
	_ = t.Flush()
}
