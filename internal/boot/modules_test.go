package boot

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// elf makes a 64-bit little-endian ELF file with these sections, as small as
// can be.
func elf(sections map[string]string) []byte {
	names := []byte("\x00.shstrtab\x00")
	type header struct {
		name        uint32
		start, size uint64
	}
	headers := []header{{}}
	body := make([]byte, elfHeaderSize)
	for name, content := range sections {
		headers = append(headers, header{uint32(len(names)), uint64(len(body)), uint64(len(content))})
		names = append(names, name+"\x00"...)
		body = append(body, content...)
	}
	headers = append(headers, header{1, uint64(len(body)), uint64(len(names))})
	body = append(body, names...)
	copy(body, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint64(body[elfSectionTable:], uint64(len(body)))
	binary.LittleEndian.PutUint16(body[elfSectionSize:], sectionHeader)
	binary.LittleEndian.PutUint16(body[elfSectionCount:], uint16(len(headers)))
	binary.LittleEndian.PutUint16(body[elfSectionNames:], uint16(len(headers)-1))
	for _, h := range headers {
		b := make([]byte, sectionHeader)
		binary.LittleEndian.PutUint32(b, h.name)
		binary.LittleEndian.PutUint64(b[sectionFileStart:], h.start)
		binary.LittleEndian.PutUint64(b[sectionFileSize:], h.size)
		body = append(body, b...)
	}
	return body
}

func TestModuleNeeds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		module []byte
		want   []string
		err    error
	}{
		{"two", elf(map[string]string{".text": "code", ".modinfo": "license=GPL\x00depends=virtio,net-failover\x00name=virtio_net\x00"}), []string{"virtio", "net-failover"}, nil},
		{"none", elf(map[string]string{".modinfo": "depends=\x00name=virtio\x00"}), nil, nil},
		{"not said", elf(map[string]string{".modinfo": "license=GPL\x00"}), nil, nil},
		{"no section", elf(map[string]string{".text": "depends=x\x00"}), nil, errNotModule},
		{"no ELF", []byte("#!/bin/sh\n"), nil, errNotModule},
		{"empty", nil, nil, errNotModule},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := moduleNeeds(tc.module)
			if !slices.Equal(got, tc.want) || !errors.Is(err, tc.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// FuzzModinfo checks that no file leads out of its own bytes.
func FuzzModinfo(f *testing.F) {
	f.Add(elf(map[string]string{".modinfo": "depends=a,b\x00"}))
	f.Fuzz(func(t *testing.T, module []byte) {
		needs, err := moduleNeeds(module)
		if err != nil && needs != nil {
			t.Errorf("%q with %v", needs, err)
		}
	})
}

func TestParseDependencies(t *testing.T) {
	got := parseDependencies(`kernel/fs/nfs/nfsv3.ko.xz: kernel/fs/nfs/nfs.ko.xz kernel/net/sunrpc/sunrpc.ko.xz
kernel/lib/plain.ko:
not a module: at all
no colon
`)
	want := map[string][]string{"nfsv3": {"sunrpc", "nfs"}, "plain": {}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// image makes a directory with files where the running kernel's modules go.
func image(t *testing.T, files map[string][]byte) string {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules", unix.ByteSliceToString(uts.Release[:]))
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestModulesOfImage checks which modules are found and what they are said to
// need. Loading them is for a machine of our own: test/vm.
func TestModulesOfImage(t *testing.T) {
	needing := elf(map[string]string{".modinfo": "depends=first,second\x00"})
	files := map[string][]byte{
		"kernel/net/some-thing.ko": needing, "kernel/packed.ko.xz": nil, "kernel/README": nil,
	}
	m, err := openModules(image(t, files))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.files) != 2 {
		t.Errorf("modules %q", m.files)
	}
	if got, err := m.needsOf("some_thing", m.files["some_thing"]); err != nil || !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("from .modinfo: %q, %v", got, err)
	}
	if got, err := m.needsOf("packed", m.files["packed"]); err == nil {
		t.Errorf("compressed, without modules.dep: %q", got)
	}
	if err := m.load("some-thing"); !errors.Is(err, errNoModule) {
		t.Errorf("load with a dependency that lacks: %v", err)
	}
	if err := m.load("some_thing"); !errors.Is(err, errNoModule) {
		t.Errorf("and again: %v", err)
	}

	files["modules.dep"] = []byte("kernel/packed.ko.xz: kernel/net/some-thing.ko\n")
	if m, err = openModules(image(t, files)); err != nil {
		t.Fatal(err)
	}
	if got, err := m.needsOf("packed", m.files["packed"]); err != nil || !slices.Equal(got, []string{"some_thing"}) {
		t.Errorf("from modules.dep: %q, %v", got, err)
	}
	if _, err := openModules(t.TempDir()); err == nil {
		t.Error("an image without modules has some")
	}
}
