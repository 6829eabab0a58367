package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Bounds of what packages may allocate when they are initialised, which every
// start of the daemon waits for. Bytes and allocations, unlike time, are the
// same on every machine and under load; of time, a kilobyte here is some 5 µs.
const (
	// ownBytes is for each package of ours but the generated ones: error
	// values, small tables.
	ownBytes = 4 << 10
	// otherBytes is for each other package. The largest are the generated
	// messages and compress/flate of klauspost, with 42 KiB.
	otherBytes  = 64 << 10
	otherAllocs = 300
	// totalBytes is a third above what it is, 200 KiB in 670 allocations, and
	// what the testing package itself brings.
	totalBytes  = 300 << 10
	totalAllocs = 1000
)

// TestInitCost keeps packages from working at their initialisation: no compiled
// expressions, no built tables, no descriptors (docs/ARCHITECTURE.md, "Answer
// first").
func TestInitCost(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	packages, sumBytes, sumAllocs := 0, 0, 0
	for line := range strings.Lines(string(out)) {
		var pkg string
		var at, clock float64
		var bytes, allocs int
		// init internal/bytealg @0.008 ms, 0 ms clock, 0 bytes, 0 allocs
		n, _ := fmt.Sscanf(line, "init %s @%f ms, %f ms clock, %d bytes, %d allocs", &pkg, &at, &clock, &bytes, &allocs)
		if n != 5 {
			continue
		}
		packages++
		sumBytes += bytes
		sumAllocs += allocs
		limit := otherBytes
		if own, ok := strings.CutPrefix(pkg, "github.com/wrenn/envd/"); ok && !strings.HasPrefix(own, "gen/") {
			limit = ownBytes
		}
		if bytes > limit || allocs > otherAllocs {
			t.Errorf("%s allocates %d bytes in %d allocations, of %d and %d: %s", pkg, bytes, allocs, limit, otherAllocs, line)
		}
	}
	if packages < 50 {
		t.Fatalf("the trace names only %d packages:\n%s", packages, out)
	}
	t.Logf("%d packages allocate %d bytes in %d allocations", packages, sumBytes, sumAllocs)
	if sumBytes > totalBytes || sumAllocs > totalAllocs {
		t.Errorf("%d bytes in %d allocations, of %d and %d:\n%s", sumBytes, sumAllocs, totalBytes, totalAllocs, out)
	}
}
