package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/wrenn/envd/internal/ports"
)

// eventLimit is how long a client may take over one batch of events before it
// is cut off.
const eventLimit = 30 * time.Second

// port is one port on the wire.
type port struct {
	Port      uint16     `json:"port"`
	Address   netip.Addr `json:"address"`
	PID       int        `json:"pid,omitempty"`
	Command   string     `json:"command,omitempty"`
	Forwarded bool       `json:"forwarded"`
}

func portMessage(p ports.Port) port {
	return port{Port: p.Addr.Port(), Address: p.Addr.Addr(), PID: p.PID, Command: p.Command, Forwarded: p.Forwarded}
}

// listPorts answers GET /ports: the ports of this moment, or as a stream of
// events what becomes of them.
func listPorts(forwarder *ports.Forwarder) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Vary", "Accept")
		switch {
		case forwarder == nil:
			httpError(w, http.StatusNotImplemented, "this kernel does not tell of listening sockets")
		case prefers(r.Header.Values("Accept"), "application/json", "text/event-stream") == "text/event-stream":
			streamPorts(w, r, forwarder)
		default:
			answerPorts(w, forwarder)
		}
	})
}

func answerPorts(w http.ResponseWriter, forwarder *ports.Forwarder) {
	list, err := forwarder.List()
	if err != nil {
		httpError(w, http.StatusInternalServerError, err.Error())
		return
	}
	answer := struct {
		// ForwardAddress is missing where nothing is forwarded at present.
		ForwardAddress *netip.Addr `json:"forward_address,omitempty"`
		Ports          []port      `json:"ports"`
	}{Ports: make([]port, len(list))}
	if addr := forwarder.Address(); addr.IsValid() {
		answer.ForwardAddress = &addr
	}
	for i, p := range list {
		answer.Ports[i] = portMessage(p)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the client is gone: nothing to tell
}

// streamPorts sends server-sent events until the client is gone.
func streamPorts(w http.ResponseWriter, r *http.Request, forwarder *ports.Forwarder) {
	watch, err := forwarder.Watch()
	if err != nil {
		httpError(w, http.StatusInternalServerError, err.Error())
		return
	}
	defer watch.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	quiet := keepalive(r.Header)
	// The answer begins at once, also while there is nothing to tell.
	batch := []byte(": ports\n\n")
	for {
		if err := writeWithin(eventLimit, w, out, batch); err != nil {
			return
		}
		events, err := nextEvents(r.Context(), watch, quiet)
		if err != nil {
			return
		}
		batch = batch[:0]
		for _, e := range events {
			batch = appendPortEvent(batch, e)
		}
		if len(events) == 0 {
			batch = append(batch, ": keepalive\n\n"...)
		}
	}
}

// writeWithin writes b and cuts off a client that does not take it. The limit
// ends with the write: over HTTP/2 one that runs out later ends the stream.
func writeWithin(limit time.Duration, w io.Writer, out *http.ResponseController, b []byte) error {
	_ = out.SetWriteDeadline(time.Now().Add(limit)) // without one, dead peers are still found
	_, err := w.Write(b)
	err = errors.Join(err, out.Flush())
	_ = out.SetWriteDeadline(time.Time{})
	return err
}

// nextEvents is Next, with nothing at all after a quiet interval.
func nextEvents(ctx context.Context, watch *ports.Watch, quiet time.Duration) ([]ports.Event, error) {
	timed, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	events, err := watch.Next(timed)
	if err != nil && timed.Err() != nil && ctx.Err() == nil {
		return nil, nil
	}
	return events, err
}

func appendPortEvent(b []byte, e ports.Event) []byte {
	name := "closed"
	if e.Opened {
		name = "opened"
	}
	data, _ := json.Marshal(portMessage(e.Port)) // cannot fail
	b = append(b, "event: "+name+"\ndata: "...)
	return append(append(b, data...), "\n\n"...)
}
