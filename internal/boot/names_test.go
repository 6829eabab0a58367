package boot

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAddHost(t *testing.T) {
	const localhost = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, tc := range []struct{ name, text, want string }{
		{"no file", "", localhost + "127.0.1.1\tbox\n"},
		{"all there", "127.0.0.1 localhost BOX # mine\n", "127.0.0.1 localhost BOX # mine\n"},
		{"only in a comment", "127.0.0.1 localhost # box\n", "127.0.0.1 localhost # box\n127.0.1.1\tbox\n"},
		{"no newline at the end", "127.0.0.1 localhost", "127.0.0.1 localhost\n127.0.1.1\tbox\n"},
		{"an address is no name", "box 127.0.0.1\n", "box 127.0.0.1\n" + localhost + "127.0.1.1\tbox\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := addHost(tc.text, "box"); got != tc.want {
				t.Errorf("got\n%swant\n%s", got, tc.want)
			}
		})
	}
}

func TestWriteResolver(t *testing.T) {
	const pnp = "#MANUAL\nnameserver 10.0.0.53\nnameserver 0.0.0.0\nbootserver 0.0.0.0\n"
	servers := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for _, tc := range []struct {
		name, old, link, pnp string
		servers              []netip.Addr
		want                 string
	}{
		{name: "default", want: "nameserver 8.8.8.8\n"},
		{name: "kernel's", pnp: pnp, want: "nameserver 10.0.0.53\n"},
		{name: "ours first", pnp: pnp, servers: servers, want: "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"},
		{name: "there is one", old: "nameserver 192.0.2.9\n", servers: servers, want: "nameserver 192.0.2.9\n"},
		{name: "empty", old: "\n", want: "nameserver 8.8.8.8\n"},
		{name: "a link to nothing", link: "../run/nowhere/resolv.conf", want: "nameserver 8.8.8.8\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			file, kernel := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "pnp")
			if tc.old != "" {
				write(t, file, tc.old)
			}
			if tc.pnp != "" {
				write(t, kernel, tc.pnp)
			}
			if tc.link != "" {
				if err := os.Symlink(tc.link, file); err != nil {
					t.Fatal(err)
				}
			}
			if err := writeResolver(file, kernel, tc.servers); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if err != nil || string(got) != tc.want {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestHostsSurviveFullDisk checks that the hosts file of a full disk stays as
// it is.
func TestHostsSurviveFullDisk(t *testing.T) {
	dir := t.TempDir()
	const page = 4096
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", page)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	hosts := filepath.Join(dir, "hosts")
	want := strings.Repeat("# host\n", page/7-1) // room for a part of what is to come
	if err := os.WriteFile(hosts, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := nameHost("box", hosts); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if got, err := os.ReadFile(hosts); err != nil || string(got) != want {
		t.Errorf("%d bytes are left of %d, %v", len(got), len(want), err)
	}
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := nameHost("box", hosts); err != nil {
			t.Error(err)
		}
	}
	if got, _ := os.ReadFile(hosts); string(got) != "127.0.0.1 localhost\n127.0.1.1\tbox\n" {
		t.Errorf("got %q", got)
	}
}
