package linux

import (
	"os"
	"testing"
)

// TestReseed checks that the kernel takes it from root. What it is for shows in
// two clones of a machine: test/vm.
func TestReseed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root")
	}
	if err := Reseed([]byte("something of this clone's own")); err != nil {
		t.Error(err)
	}
}
