package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/wrenn/envd/internal/ports"
)

// openPorts makes what forwards ports. Where the kernel does not tell of
// listeners, everything else works without, and the log says so. So does an init
// that is told a wrong address: it has to come up.
func (d *daemon) openPorts() error {
	f, err := ports.Open(ports.Config{
		Address: d.ForwardIP,
		Own:     uint16(d.Port),
		Active:  func() bool { return d.table.Unsettled() > 0 },
		Log:     d.Log,
	})
	switch {
	case errors.Is(err, ports.ErrAddress) && !d.end.isInit:
		return fmt.Errorf("flag forward-ip: %w", err)
	case err != nil:
		d.Log.Error("ports are not forwarded", "error", err)
		return nil
	}
	d.forwarder = f
	d.coordinator.Register(f)
	d.group.add("ports", f.Run, func(context.Context) error { return f.Close() })
	return nil
}
