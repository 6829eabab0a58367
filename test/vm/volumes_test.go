package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVolumes mounts NFS volumes with a kernel's own client, in an image without
// mount(8) or anything else of NFS.
func TestVolumes(t *testing.T) {
	needsRoot(t)
	modules := append(slices.Clone(bareModules), "nfs", "nfsv3")
	initrd := filepath.Join(t.TempDir(), "initrd")
	must(t, bareImage(initrd, nil, modules...))
	m := boot(t, image{initrd: initrd, params: []string{modulesParam(modules...)}})
	serve := func(ip, text string) *nfsServer {
		s, err := serveNFS(m.link, ip, text)
		must(t, err)
		t.Cleanup(s.close)
		return s
	}
	one, two := serve(hostIP, "hello from one"), serve(metadataIP, "hello from two")
	const path = "/mnt/deep/volume"
	mount := func(ip, lifecycle string) string { return volume(ip+":"+nfsExport, path, lifecycle) }
	read := func(want string) {
		t.Helper()
		b, err := m.do(t.Context(), http.MethodGet, files(path+"/"+nfsFile), "", nil)
		if err != nil || string(b) != want {
			t.Errorf("the file on the volume is %q, %v; want %q", b, err, want)
		}
	}

	// Mounted when the call is over, with the options that are documented.
	m.wantInit(t, 204, mount(hostIP, "first"))
	read("hello from one")
	table := m.mountsOn(t, path)
	if len(table) != 1 {
		t.Fatalf("mounts on %s: %q", path, table)
	}
	for _, option := range []string{"nosuid", "nodev", "vers=3", "proto=tcp", "port=2049", "mountport=2049", "mountproto=tcp", "local_lock=all", "hard"} {
		if !strings.Contains(table[0], option) {
			t.Errorf("no %s in %s", option, table[0])
		}
	}

	// The same lifecycle leaves it alone, another one replaces it.
	m.wantInit(t, 204, mount(hostIP, "first"))
	if n := one.mounted(); n != 1 {
		t.Errorf("mounted %d times for one lifecycle", n)
	}
	m.wantInit(t, 204, mount(hostIP, "second"))
	if n, table := one.mounted(), m.mountsOn(t, path); n != 2 || len(table) != 1 {
		t.Errorf("mounted %d times for two lifecycles: %q", n, table)
	}

	// A directory that is not served, with the target in the answer.
	if said := m.wantInit(t, 400, volume(hostIP+":/other", "/mnt/other", "second")); !strings.Contains(said, hostIP+":/other") {
		t.Errorf("the answer does not name the target: %s", said)
	}

	// A server that hangs is given up after ten seconds, in which others are
	// served; nothing is left of it.
	one.hush()
	began := time.Now()
	said := make(chan string, 1)
	go func() { said <- m.wantInit(t, 400, volume(hostIP+":"+nfsExport, "/mnt/hung", "second")) }()
	m.waitHealth(t, stepLimit)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("others waited %v beside a mount that hangs", took)
	}
	if s := <-said; !strings.Contains(s, hostIP+":"+nfsExport) {
		t.Errorf("the answer does not name the target: %s", s)
	}
	if took := time.Since(began); took < 9*time.Second || took > 14*time.Second {
		t.Errorf("a mount that hangs was given up after %v", took)
	}
	if others, _ := m.children(t); len(others) > 0 {
		t.Errorf("left of it: %q", others)
	}

	// One whose server hangs is replaced all the same.
	m.wantInit(t, 204, mount(metadataIP, "third"))
	read("hello from two")
	if n, table := two.mounted(), m.mountsOn(t, path); n != 1 || len(table) != 1 || !strings.HasPrefix(table[0], metadataIP) {
		t.Errorf("mounted %d times: %q", n, table)
	}
}

// volume is the body of an init.
func volume(target, path, lifecycle string) string {
	b, _ := json.Marshal(map[string]any{
		"volumeMounts": []map[string]string{{"nfs_target": target, "path": path}}, "lifecycleID": lifecycle,
	})
	return string(b)
}

// wantInit calls /init and wants that status; it answers the body.
func (m *machine) wantInit(t *testing.T, status int, body string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	_, err := m.do(ctx, http.MethodPost, base+"/init", "application/json", bytes.NewReader([]byte(body)))
	switch {
	case status == http.StatusNoContent && err != nil:
		t.Errorf("init: %v", err)
	case status != http.StatusNoContent && (err == nil || !strings.Contains(err.Error(), fmt.Sprint(status))):
		t.Errorf("init: %v, want status %d", err, status)
	}
	return fmt.Sprint(err)
}

// mountsOn are the lines of the guest's table of mounts about a path.
func (m *machine) mountsOn(t *testing.T, path string) (lines []string) {
	t.Helper()
	b, err := m.do(t.Context(), http.MethodGet, files("/proc/1/mounts"), "", nil)
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == path {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
