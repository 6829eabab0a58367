package guest

import (
	"strconv"
	"sync"
	"testing"
)

// A request that loaded the settings keeps them as they were.
func TestStorePublishesCopies(t *testing.T) {
	st := NewStore(Settings{User: "root", Env: map[string]string{"A": "1"}})
	old := st.Load()
	st.Update(func(s *Settings) {
		s.User, s.Workdir = "user", "/work"
		s.Env["A"], s.Env["B"] = "2", "3"
	})
	if old.User != "root" || old.Workdir != "" || len(old.Env) != 1 || old.Env["A"] != "1" {
		t.Errorf("loaded settings changed to %+v", old)
	}
	now := st.Load()
	if now.User != "user" || now.Workdir != "/work" || now.Env["A"] != "2" || now.Env["B"] != "3" {
		t.Errorf("settings are %+v", now)
	}
}

func TestStoreUpdateWithoutEnv(t *testing.T) {
	st := NewStore(Settings{})
	st.Update(func(s *Settings) { s.Env["A"] = "1" })
	if got := st.Load().Env["A"]; got != "1" {
		t.Errorf("A is %q", got)
	}
}

// No update is lost, and readers see whole ones.
func TestStoreConcurrently(t *testing.T) {
	const writers, updates = 4, 100
	st := NewStore(Settings{User: "0", Workdir: "0"})
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range updates {
				st.Update(func(s *Settings) {
					n, _ := strconv.Atoi(s.User)
					s.User = strconv.Itoa(n + 1)
					s.Workdir = s.User
				})
				if s := st.Load(); s.User != s.Workdir {
					t.Errorf("half an update: %+v", s)
				}
			}
		})
	}
	wg.Wait()
	if got, want := st.Load().User, strconv.Itoa(writers*updates); got != want {
		t.Errorf("%s updates arrived, want %s", got, want)
	}
}
