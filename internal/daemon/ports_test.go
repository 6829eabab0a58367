package daemon

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/wrenn/envd/internal/leaktest"
	"github.com/wrenn/envd/internal/ports"
	"github.com/wrenn/envd/internal/snapshot"
)

// TestForwardToNonsense checks that an init comes up whatever address it is
// told, and that any other daemon says what is wrong.
func TestForwardToNonsense(t *testing.T) {
	leaktest.Check(t)
	for _, isInit := range []bool{true, false} {
		d := &daemon{
			Config:      Config{ForwardIP: netip.MustParseAddr("127.0.0.1"), Log: quiet()},
			end:         &end{isInit: isInit},
			coordinator: snapshot.New(snapshot.Config{Log: quiet()}),
		}
		err := d.openPorts()
		if isInit && err != nil || !isInit && !errors.Is(err, ports.ErrAddress) || d.forwarder != nil {
			t.Errorf("init %v: %v", isInit, err)
		}
	}
}
