package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnitOfSystemd has systemd's own checker read the unit, with the daemon
// where it was built. It takes no systemd that runs.
func TestUnitOfSystemd(t *testing.T) {
	needsRoot(t)
	const unit = "../../dist/envd.service"
	text, err := os.ReadFile(unit)
	must(t, err)
	const installed = "ExecStart=/usr/local/bin/envd "
	if n := strings.Count(string(text), installed); n != 1 {
		t.Fatalf("%d times %q in the unit", n, installed)
	}
	there := strings.Replace(string(text), installed, "ExecStart="+env.envd+" ", 1)
	file := filepath.Join(t.TempDir(), filepath.Base(unit))
	must(t, os.WriteFile(file, []byte(there), 0o644))
	if out := tool(t, "systemd-analyze", "verify", "--man=no", file); out != "" {
		t.Errorf("systemd complains:\n%s", out)
	}
	// The checker does see what is wrong.
	must(t, os.WriteFile(file, []byte(there+"NoSuchKey=1\n"), 0o644))
	if out := tool(t, "systemd-analyze", "verify", "--man=no", file); !strings.Contains(out, "NoSuchKey") {
		t.Errorf("systemd accepts anything: %q", out)
	}
}

// TestScriptOfOpenRC runs what openrc-run would of the script, in a shell as
// strict as Debian's: it sets variables and declares what it needs.
func TestScriptOfOpenRC(t *testing.T) {
	out := tool(t, "sh", "-ec", `
need() { echo "need $*"; }
after() { echo "after $*"; }
. ../../dist/envd.openrc
depend
echo "$supervisor $command"`)
	const want = "need localmount\nafter bootmisc\nsupervise-daemon /usr/local/bin/envd\n"
	if out != want {
		t.Errorf("the script says %q, want %q", out, want)
	}
}
