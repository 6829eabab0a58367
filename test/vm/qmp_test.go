package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// monitor speaks QMP, QEMU's control protocol, over its unix socket. It is for
// one goroutine.
type monitor struct {
	conn net.Conn
	in   *bufio.Scanner
}

func dialMonitor(path string, limit time.Time) (*monitor, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			m := &monitor{conn: conn, in: bufio.NewScanner(conn)}
			if _, err := m.command("qmp_capabilities", nil); err != nil {
				_ = conn.Close()
				return nil, err
			}
			return m, nil
		}
		if time.Now().After(limit) {
			return nil, fmt.Errorf("dial QEMU's monitor: %w", err)
		}
		time.Sleep(5 * time.Millisecond) // the socket has no event of its own
	}
}

// command executes one, and skips the events that come before its answer.
func (m *monitor) command(name string, arguments any) (json.RawMessage, error) {
	request := map[string]any{"execute": name}
	if arguments != nil {
		request["arguments"] = arguments
	}
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	if err := m.conn.SetDeadline(time.Now().Add(stepLimit)); err != nil {
		return nil, err
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return nil, fmt.Errorf("QEMU %s: %w", name, err)
	}
	for m.in.Scan() {
		var reply struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(m.in.Bytes(), &reply); err != nil {
			return nil, fmt.Errorf("QEMU %s: %w", name, err)
		}
		switch {
		case reply.Error != nil:
			return nil, fmt.Errorf("QEMU %s: %s", name, reply.Error.Desc)
		case reply.Return != nil:
			return reply.Return, nil
		}
	}
	return nil, fmt.Errorf("QEMU %s: no answer: %w", name, m.in.Err())
}

// migrated waits until a migration, which is how QEMU saves and loads, is over.
func (m *monitor) migrated(limit time.Time) error {
	for {
		b, err := m.command("query-migrate", nil)
		if err != nil {
			return err
		}
		var info struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(b, &info); err != nil {
			return err
		}
		switch {
		case info.Status == "completed":
			return nil
		case info.Status == "failed" || time.Now().After(limit):
			return fmt.Errorf("migration is %s: %s", info.Status, info.Desc)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
