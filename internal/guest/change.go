package guest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Change is what the host wants different, validated. Zero fields ask for
// nothing, but for the token.
type Change struct {
	Token         Token
	User, Workdir string
	Env           map[string]*string // nil removes the variable
	Time          time.Time          // the host's; Received is when it came
	Received      time.Time
	Events        netip.Addr // of the collector of events
	Mounts        []Mount
	Lifecycle     string // of Mounts
	Certificates  Bundle
}

// MachineConfig is what a Machine works with.
type MachineConfig struct {
	Settings *Store
	Clock    Clock
	Mounter  Mounter
	Log      *slog.Logger
	Root     string // directory of the system's files: "/", but in tests
}

// Machine is what the host may change: the settings, and files, clock and mounts
// of the system. There is one, since it knows what it has mounted. Its methods
// are not safe for concurrent use.
type Machine struct {
	MachineConfig
	mounts mounts
}

// NewMachine makes a Machine that has mounted nothing.
func NewMachine(cfg MachineConfig) *Machine {
	return &Machine{cfg, mounts{mounter: cfg.Mounter, made: make(map[string]volume)}}
}

// Apply makes the change: all of it, or after an error nothing that a request
// would see. The settings are published last, in one piece. by is how far the
// clock was set ahead.
//
// A clock that must not be set, as in a container, is left as it is.
func (m *Machine) Apply(ctx context.Context, c *Change) (by time.Duration, err error) {
	if err := m.mounts.apply(ctx, c.Mounts, c.Lifecycle); err != nil {
		return 0, err
	}
	if len(c.Certificates) > 0 {
		if err := trust(m.Root, c.Certificates); err != nil {
			return 0, err
		}
	}
	if c.Events.IsValid() {
		path := filepath.Join(m.Root, "etc/hosts")
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = edit(path, func(text []byte) []byte { return setEvents(text, c.Events) })
		}
		if err != nil {
			return 0, fmt.Errorf("name the collector of events: %w", err)
		}
	}
	if !c.Time.IsZero() {
		if by, err = adjust(m.Clock, c.Time.Add(time.Since(c.Received))); err != nil {
			m.Log.Warn("the clock is off and stays so", "error", err)
		} else if by != 0 {
			m.Log.Info("clock set", "ahead_by", by)
		}
	}
	m.Settings.Update(c.update)
	return by, nil
}

// update makes s the settings after the change.
func (c *Change) update(s *Settings) {
	s.Token = c.Token
	if c.User != "" {
		s.User = c.User
	}
	if c.Workdir != "" {
		s.Workdir = c.Workdir
	}
	for name, value := range c.Env {
		if value == nil {
			delete(s.Env, name)
		} else {
			s.Env[name] = *value
		}
	}
	if c.Events.IsValid() {
		s.Env["WRENN_EVENTS_ADDRESS"] = "http://" + hostPart(c.Events)
	}
}

// hostPart is addr as a URL has it.
func hostPart(addr netip.Addr) string {
	if addr.Is6() {
		return "[" + addr.String() + "]"
	}
	return addr.String()
}
