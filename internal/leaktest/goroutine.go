package leaktest

import (
	"runtime"
	"slices"
	"strings"
)

// permanent marks the stacks of goroutines that the standard library starts
// when they are first needed and keeps for the life of the process.
var permanent = []string{
	"\nos/signal.loop(", // by signal.Notify
	// The collector's workers and others, which are hidden unless GOTRACEBACK
	// is system or crash.
	"\ncreated by runtime.",
}

// goroutines returns the stacks of all goroutines but the caller's and the
// permanent ones.
func goroutines() snapshot {
	found := snapshot{}
	stacks := strings.Split(allStacks(), "\n\n")
	for _, stack := range stacks[1:] { // the caller's is the first
		// goroutine 12 [chan receive, 2 minutes]:
		id, _, _ := strings.Cut(stack, " [")
		if slices.ContainsFunc(permanent, func(mark string) bool { return strings.Contains(stack, mark) }) {
			continue
		}
		found[id] = strings.ReplaceAll(stack, "\n", "\n\t")
	}
	return found
}

func allStacks() string {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.TrimSpace(string(buf[:n]))
		}
	}
}
