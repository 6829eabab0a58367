package vm

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFailedSteps boots with parameters that make no sense and modules that do
// not load, compressed ones among them: Debian's kernel decompresses none. Each
// is one line on the console, and the daemon serves with its defaults.
func TestFailedSteps(t *testing.T) {
	needsRoot(t)
	loop, err := os.ReadFile(env.kernel.modules["loop"])
	must(t, err)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = w.Write(loop)
	must(t, err)
	must(t, w.Close())
	dir := env.kernel.inImage(filepath.Join("/lib/modules", env.kernel.release))
	initrd := filepath.Join(t.TempDir(), "initrd")
	must(t, bareImage(initrd, map[string][]byte{
		dir + "/modules.dep":    []byte("listed.ko.gz:\n"),
		dir + "/listed.ko.gz":   packed.Bytes(),
		dir + "/unlisted.ko.gz": packed.Bytes(),
		dir + "/broken.ko":      loop[:len(loop)/2],
	}, bareModules...))
	modules := append([]string{"listed", "unlisted", "broken", "nowhere"}, bareModules...)
	m := boot(t, image{initrd: initrd, params: []string{
		modulesParam(modules...), "envd.ip=nonsense", "envd.gateway=2001:db8::1", "envd.hostname=-x", "envd.dns=8.8.8.8,name",
	}})
	must(t, m.console.wait("envd is ready", stepLimit))

	got := map[string][]string{} // errors by step
	for line := range strings.Lines(m.console.String()) {
		var step struct{ Msg, Step, Error string }
		if json.Unmarshal([]byte(line), &step) == nil && step.Msg == "boot step did not work" {
			got[step.Step] = append(got[step.Step], step.Error)
		}
	}
	for step, want := range map[string][]string{
		"load module listed":   {"the kernel does not decompress it"},
		"load module unlisted": {"compressed, and modules.dep does not have it"},
		"load module broken":   {"not a kernel module"},
		"load module nowhere":  {"no such module in the image"},
		"begin":                {`envd.ip="nonsense"`, `envd.gateway="2001:db8::1"`, `envd.hostname="-x"`, `envd.dns="8.8.8.8,name"`},
	} {
		if !slices.EqualFunc(got[step], want, strings.Contains) {
			t.Errorf("%s: the console says %q, want %q", step, got[step], want)
		}
		delete(got, step)
	}
	if len(got) > 0 {
		t.Errorf("the console says as well: %q", got)
	}
	checkNames(t, m, "capsule")
}
