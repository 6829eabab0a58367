package linux

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// SetRealtime sets the wall clock. It takes CAP_SYS_TIME; EPERM says that it
// is lacking.
func SetRealtime(t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return fmt.Errorf("set clock to %v: %w", t, err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("clock_settime: %w", err)
	}
	return nil
}
