package main

import (
	"strings"
	"testing"

	"github.com/wrenn/envd/test/cgroups"
)

// TestQuick runs every figure, for whether it works and not for how fast.
func TestQuick(t *testing.T) {
	rows, err := run(config{quick: true, cgroupRoot: cgroups.Mount(), progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	printTable(&table, rows)
	t.Log("\n" + table.String())
	if len(rows) < len(figures) {
		t.Errorf("%d rows for %d figures", len(rows), len(figures))
	}
	for _, r := range rows {
		// An idle daemon may well use no processor time in a second, and a
		// reader that was cut off has no speed: how that ought to be is not for
		// this test to say.
		measured := r.ours > 0 || r.unit == "ms/s" || r.name == besideSlow && r.floor > 0
		if !measured {
			t.Errorf("%s: nothing measured: %+v", r.name, r)
		}
	}
}
