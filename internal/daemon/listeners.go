package daemon

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"

	"github.com/wrenn/envd/internal/server"
)

// openListeners opens what is to be served: TCP first. An init does without
// what cannot be opened beside it, such as vsock in a machine that has none: a
// host that cannot reach it in one way may still do so in another.
func openListeners(cfg Config, isInit bool) ([]net.Listener, error) {
	tcp, err := server.Listen(net.JoinHostPort("", strconv.Itoa(cfg.Port)))
	if err != nil {
		return nil, err
	}
	open := []net.Listener{tcp}
	var errs []error
	add := func(l net.Listener, err error) {
		switch {
		case err == nil:
			open = append(open, l)
		case isInit:
			cfg.Log.Warn("listener does not work", "error", err)
		default:
			errs = append(errs, err)
		}
	}
	switch {
	case cfg.VsockPort > math.MaxUint32:
		add(nil, fmt.Errorf("flag vsock-port: %d is more than 32 bits hold", cfg.VsockPort))
	case cfg.VsockPort != 0:
		add(server.ListenVsock(uint32(cfg.VsockPort)))
	}
	if cfg.Unix != "" {
		add(server.ListenUnix(cfg.Unix))
	}
	if err := errors.Join(errs...); err != nil {
		closeAll(open)
		return nil, err
	}
	return open, nil
}

// closeAll closes listeners that a server may have closed already.
func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}
