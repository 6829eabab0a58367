package main

import (
	"fmt"
	"os"
)

// binarySize compares the daemon's binary with that of a bare connect-go
// server of the same services over HTTP/1.1 and h2c.
func binarySize(b *bench) ([]row, error) {
	sizes := make(map[string]float64)
	for _, name := range []string{"envd", "rpc"} {
		fi, err := os.Stat(b.program(name))
		if err != nil {
			return nil, fmt.Errorf("size of binary: %w", err)
		}
		sizes[name] = float64(fi.Size()) / 1e6
	}
	return []row{limit("binary size", "MB", sizes["envd"], sizes["rpc"], 1.15)}, nil
}
