package metrics

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// Pressure is for how long tasks have waited for a resource since boot.
type Pressure struct {
	Waiting time.Duration // some task
	Stalled time.Duration // all that had something to do
}

// Resources are those that the kernel knows the pressure on.
var Resources = [...]string{"cpu", "io", "memory"}

// ReadPressure reads /proc/pressure (PSI). An error that is fs.ErrNotExist or
// unix.EOPNOTSUPP means that the kernel does not account for it.
func ReadPressure(resource string) (Pressure, error) {
	b, err := os.ReadFile("/proc/pressure/" + resource)
	if err != nil {
		return Pressure{}, fmt.Errorf("read pressure: %w", err)
	}
	return parsePressure(b)
}

// parsePressure reads lines like "some avg10=0.12 … total=1234", in
// microseconds.
func parsePressure(b []byte) (p Pressure, err error) {
	for line := range bytes.Lines(b) {
		kind, _, _ := bytes.Cut(line, []byte{' '})
		_, total, ok := bytes.Cut(line, []byte(" total="))
		into := &p.Waiting
		switch {
		case !ok:
			continue
		case string(kind) == "full":
			into = &p.Stalled
		case string(kind) != "some":
			continue
		}
		us, err := number(bytes.TrimSpace(total), uint64(time.Microsecond))
		if err != nil {
			return Pressure{}, fmt.Errorf("read pressure: %w", err)
		}
		*into = time.Duration(us)
	}
	return p, nil
}
