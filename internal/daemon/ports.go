package daemon

import (
	"errors"
	"fmt"

	"github.com/wrenn/envd/internal/ports"
	"github.com/wrenn/envd/internal/process"
)

// openPorts makes what forwards ports: nil where the kernel does not tell of
// listeners, which the log says. Everything else works without.
func openPorts(cfg Config, table *process.Table) (*ports.Forwarder, error) {
	f, err := ports.Open(ports.Config{
		Address: cfg.ForwardIP,
		Own:     uint16(cfg.Port),
		Active:  func() bool { return table.Unsettled() > 0 },
		Log:     cfg.Log,
	})
	switch {
	case errors.Is(err, ports.ErrAddress):
		return nil, fmt.Errorf("flag forward-ip: %w", err)
	case err != nil:
		cfg.Log.Error("ports are not forwarded", "error", err)
		return nil, nil //nolint:nilnil // nil is a forwarder that is not there
	}
	return f, nil
}
