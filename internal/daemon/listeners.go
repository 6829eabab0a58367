package daemon

import (
	"errors"
	"log/slog"
	"net"

	"github.com/wrenn/envd/internal/server"
)

// openListeners opens what is to be served beside TCP. An init does without
// what cannot be opened, such as vsock in a machine that has none: a host that
// cannot reach it in one way may still do so in another.
func openListeners(cfg Config, isInit bool, log *slog.Logger) ([]net.Listener, error) {
	var open []net.Listener
	var errs []error
	add := func(l net.Listener, err error) {
		switch {
		case err == nil:
			open = append(open, l)
		case isInit:
			log.Warn("listener does not work", "error", err)
		default:
			errs = append(errs, err)
		}
	}
	if cfg.VsockPort != 0 {
		add(server.ListenVsock(uint32(cfg.VsockPort)))
	}
	if cfg.Unix != "" {
		add(server.ListenUnix(cfg.Unix))
	}
	if err := errors.Join(errs...); err != nil {
		for _, l := range open {
			_ = l.Close() // nothing came of it
		}
		return nil, err
	}
	return open, nil
}
