package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/wrenn/envd/internal/linux"
)

const (
	passwd = `root:x:0:0:root:/root:/bin/bash
# a comment:x:1:1:::
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin

short:x:5
user:x:1000:1000:,,,:/home/user:/bin/bash
user:x:1001:1001:a second of that name:/elsewhere:
alias:x:1000:1000:the same number:/home/alias:
huge:x:4294967296:1:too large:/:
minus:x:-1:1:negative:/:
nogid:x:7::missing:/:
+::::::
crlf:x:1005:1005::/home/crlf:/bin/sh` + "\r\n" + `last:x:1006:1006::/home/last:/bin/sh`
	group = `root:x:0:
daemon:x:1:root,daemon
users:x:100:user, alias ,,user
sudo:x:27:user
again:x:27:last
user:x:1000:user
bad:x:many:user
short:x:9
`
)

// files writes the two files and answers accounts over them.
func files(t testing.TB, passwd, group string) (a *Accounts, dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, "passwd"), passwd)
	write(t, filepath.Join(dir, "group"), group)
	return NewAccounts(filepath.Join(dir, "passwd"), filepath.Join(dir, "group")), dir
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	a, _ := files(t, passwd, group)
	for _, want := range []Account{
		{"root", 0, 0, []uint32{0, 1}, "/root"},
		{"daemon", 1, 1, []uint32{1}, "/usr/sbin"},
		{"user", 1000, 1000, []uint32{27, 100, 1000}, "/home/user"},
		{"alias", 1000, 1000, []uint32{100, 1000}, "/home/alias"},
		{"crlf", 1005, 1005, []uint32{1005}, "/home/crlf"},
		{"last", 1006, 1006, []uint32{27, 1006}, "/home/last"},
	} {
		got, err := a.Lookup(want.Name)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("lookup %s: %+v, %v; want %+v", want.Name, got, err, want)
		}
	}
	for _, name := range []string{"", "nobody", "short", "huge", "minus", "nogid", "+", "# a comment", "root ", "root:x", "0"} {
		if got, err := a.Lookup(name); !errors.Is(err, ErrUnknownUser) {
			t.Errorf("lookup %q: %+v, %v; want %v", name, got, err, ErrUnknownUser)
		}
	}
}

func TestNames(t *testing.T) {
	a, _ := files(t, passwd, group)
	for uid, want := range map[uint32]string{0: "root", 1000: "user", 4294967295: "4294967295", 7: "7"} {
		if got := a.UserName(uid); got != want {
			t.Errorf("user %d is %q, want %q", uid, got, want)
		}
	}
	for gid, want := range map[uint32]string{0: "root", 27: "sudo", 9: "9", 555: "555"} {
		if got := a.GroupName(gid); got != want {
			t.Errorf("group %d is %q, want %q", gid, got, want)
		}
	}
}

// An image without the files has one user.
func TestNoFilesMeanRoot(t *testing.T) {
	dir := t.TempDir()
	for name, a := range map[string]*Accounts{
		"missing": NewAccounts(filepath.Join(dir, "passwd"), filepath.Join(dir, "group")),
		"empty":   must(files(t, "", "")),
	} {
		got, err := a.Lookup("root")
		if want := (Account{Name: "root", Home: "/", Groups: []uint32{0}}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: root is %+v, %v; want %+v", name, got, err, want)
		}
		if a.UserName(0) != "root" || a.GroupName(0) != "root" {
			t.Errorf("%s: names %q, %q; want root", name, a.UserName(0), a.GroupName(0))
		}
	}
}

func must(a *Accounts, _ string) *Accounts { return a }

// Looking an account up costs two stats: the files are read when they changed
// and not otherwise.
func TestAccountsAreReadOnce(t *testing.T) {
	a, dir := files(t, passwd, group)
	lookup := func() uintptr {
		t.Helper()
		if _, err := a.Lookup("user"); err != nil {
			t.Fatal(err)
		}
		a.UserName(0)
		a.GroupName(0)
		return reflect.ValueOf(a.byName).Pointer()
	}
	first := lookup()
	for range 100 {
		if lookup() != first {
			t.Fatal("the files were read again without a change")
		}
	}
	write(t, filepath.Join(dir, "group"), group+"new:x:50:user\n")
	second := lookup()
	if second == first {
		t.Fatal("a change of the group file was not noticed")
	}
	if lookup() != second {
		t.Error("the files were read again without a change")
	}
}

// Every way in which files change is noticed by the next lookup.
func TestAccountsFollowChanges(t *testing.T) {
	a, dir := files(t, passwd, group)
	file := filepath.Join(dir, "passwd")
	line := func(n int) string { return fmt.Sprintf("guest:x:%d:%d::/home/guest:/bin/sh\n", n, n) }
	change := []struct {
		name string
		do   func(n int) error
	}{
		{"rename", func(n int) error {
			write(t, file+"+", line(n))
			return os.Rename(file+"+", file)
		}},
		{"write over, same size", func(n int) error { return os.WriteFile(file, []byte(line(n)), 0o644) }},
		{"append", func(n int) error {
			// The first of a name counts: begin anew.
			return os.WriteFile(file, []byte("other:x:1:1::/:\n"+line(n)), 0o644)
		}},
		{"remove and create", func(n int) error {
			return errors.Join(os.Remove(file), os.WriteFile(file, []byte(line(n)), 0o600))
		}},
	}
	for i, c := range slices.Concat(change, change) {
		n := 2000 + i
		if err := c.do(n); err != nil {
			t.Fatal(err)
		}
		if got, err := a.Lookup("guest"); err != nil || got.UID != uint32(n) {
			t.Errorf("after %s: %+v, %v; want uid %d", c.name, got, err, n)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lookup("guest"); !errors.Is(err, ErrUnknownUser) {
		t.Errorf("after removal: %v", err)
	}
}

// A published account is nobody's to change.
func TestAccountsConcurrently(t *testing.T) {
	a, dir := files(t, passwd, group)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				acct, err := a.Lookup("user")
				if err != nil || !slices.Equal(acct.Groups, []uint32{27, 100, 1000}) {
					t.Errorf("lookup: %+v, %v", acct, err)
					return
				}
				a.UserName(1)
			}
		})
	}
	for range 50 {
		write(t, filepath.Join(dir, "passwd.new"), passwd)
		if err := os.Rename(filepath.Join(dir, "passwd.new"), filepath.Join(dir, "passwd")); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func FuzzPasswd(f *testing.F) {
	f.Add([]byte(passwd))
	f.Add([]byte("a:b:0:0:c:d:e:f:g\n::::::\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		byName, names := parsePasswd(text)
		for name, acct := range byName {
			if name == "" || acct.Name != name {
				t.Errorf("account %q is called %q", name, acct.Name)
			}
			if _, ok := names[acct.UID]; !ok {
				t.Errorf("uid %d of %q has no name", acct.UID, name)
			}
		}
		for uid, name := range names {
			if byName[name].UID != uid {
				t.Errorf("uid %d is called %q, who is %d", uid, name, byName[name].UID)
			}
		}
	})
}

func FuzzGroup(f *testing.F) {
	f.Add([]byte(group))
	f.Add([]byte("a:b:1:,,a,b\nc::2:a\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		names, members := parseGroup(text)
		for user, gids := range members {
			if user == "" || len(gids) == 0 {
				t.Errorf("member %q of %v", user, gids)
			}
			for _, gid := range gids {
				if names[gid] == "" {
					t.Errorf("group %d has no name", gid)
				}
			}
		}
	})
}

// TestAccountsUnreadable: files that changed and cannot be read, here since the
// thread is a user, do not make the accounts unknown.
func TestAccountsUnreadable(t *testing.T) {
	a, dir := files(t, "root:x:0:0::/root:\nold:x:7:7::/:\n", "")
	if _, err := a.Lookup("old"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "passwd"), "root:x:0:0::/root:\nnewer:x:8:8::/:\n")
	if err := os.Chmod(filepath.Join(dir, "passwd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := linux.DoAs(linux.FSIdentity{UID: 42001, GID: 42001}, func() error {
		if name := a.UserName(7); name != "old" {
			t.Errorf("user 7 is %q", name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lookup("newer"); err != nil {
		t.Error(err)
	}
}
