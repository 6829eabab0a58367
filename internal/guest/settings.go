package guest

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Settings are the defaults of requests. A published value is never changed.
type Settings struct {
	// User is the name of the default user.
	User string
	// Workdir is the default working directory; "" means the user's home.
	Workdir string
	// Env are the default environment variables.
	Env map[string]string
	// Token is what requests have to show.
	Token Token
	// Identity is which sandbox this is, as far as known.
	Identity Identity
}

// Store publishes Settings. The zero value is not usable; see NewStore.
type Store struct {
	mu      sync.Mutex // serialises Update
	current atomic.Pointer[Settings]
}

// NewStore starts with s.
func NewStore(s Settings) *Store {
	st := &Store{}
	st.current.Store(&s)
	return st
}

// Load answers the current settings. The caller does not change them.
func (st *Store) Load() *Settings { return st.current.Load() }

// Update publishes what change makes of a copy of the current settings.
func (st *Store) Update(change func(*Settings)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	next := *st.current.Load()
	next.Env = maps.Clone(next.Env)
	if next.Env == nil {
		next.Env = make(map[string]string)
	}
	change(&next)
	st.current.Store(&next)
}
