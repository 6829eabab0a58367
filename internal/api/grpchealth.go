package api

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
)

// grpcHealthName is the service by which gRPC clients ask for health.
const grpcHealthName = "grpc.health.v1.Health"

// servingStatus is what is known of a service.
type servingStatus uint64

// The statuses that we answer, as grpc.health.v1 numbers them. A service whose
// handlers are mounted serves: there is no other state.
const (
	statusServing servingStatus = 1
	statusUnknown servingStatus = 3
)

// MarshalText writes the name that JSON shows.
func (s servingStatus) MarshalText() ([]byte, error) {
	if s == statusServing {
		return []byte("SERVING"), nil
	}
	return []byte("SERVICE_UNKNOWN"), nil
}

// newHealthHandler makes the standard health service: Check, List and Watch of
// services. The empty name stands for the daemon as a whole.
func newHealthHandler(services []string, opts ...connect.HandlerOption) (path string, _ http.Handler) {
	h := &healthService{statuses: map[string]servingStatus{"": statusServing}}
	for _, name := range services {
		h.statuses[name] = statusServing
	}
	path = "/" + grpcHealthName + "/"
	mux := http.NewServeMux()
	mux.Handle(path+"Check", connect.NewUnaryHandler(path+"Check", h.check, opts...))
	mux.Handle(path+"List", connect.NewUnaryHandler(path+"List", h.list, opts...))
	mux.Handle(path+"Watch", connect.NewServerStreamHandler(path+"Watch", h.watch, opts...))
	return path, mux
}

type healthService struct {
	statuses map[string]servingStatus // by service; does not change
}

func (h *healthService) check(_ context.Context, req *connect.Request[healthRequest]) (*connect.Response[healthResponse], error) {
	s, ok := h.statuses[req.Msg.Service]
	if !ok {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("unknown service %q", req.Msg.Service))
	}
	return connect.NewResponse(&healthResponse{s}), nil
}

func (h *healthService) list(context.Context, *connect.Request[healthListRequest]) (*connect.Response[healthList], error) {
	list := &healthList{Statuses: make(map[string]healthResponse, len(h.statuses))}
	for name, s := range h.statuses {
		list.Statuses[name] = healthResponse{s}
	}
	return connect.NewResponse(list), nil
}

// watch sends a status, and would send what it changes to.
func (h *healthService) watch(ctx context.Context, req *connect.Request[healthRequest], stream *connect.ServerStream[healthResponse]) error {
	s, ok := h.statuses[req.Msg.Service]
	if !ok {
		s = statusUnknown // not an error: it may be served later
	}
	if err := stream.Send(&healthResponse{s}); err != nil {
		return err
	}
	<-ctx.Done()
	return rpcError(context.Cause(ctx))
}

// healthRequest is grpc.health.v1.HealthCheckRequest.
type healthRequest struct {
	Service string `json:"service"`
}

func (m *healthRequest) appendWire(b []byte) []byte { return appendText(b, 1, m.Service) }

func (m *healthRequest) parseWire(b []byte) error {
	return eachField(b, func(f field) (err error) {
		if f.number == 1 {
			m.Service, err = f.text()
		}
		return err
	})
}

// healthResponse is grpc.health.v1.HealthCheckResponse.
type healthResponse struct {
	Status servingStatus `json:"status"`
}

func (m *healthResponse) appendWire(b []byte) []byte { return appendNumber(b, 1, uint64(m.Status)) }

func (m *healthResponse) parseWire(b []byte) error {
	return eachField(b, func(f field) error {
		if f.number == 1 && f.kind == protowire.VarintType {
			m.Status = servingStatus(f.varint)
		}
		return nil
	})
}

// healthListRequest is grpc.health.v1.HealthListRequest: empty.
type healthListRequest struct{}

func (*healthListRequest) appendWire(b []byte) []byte { return b }

func (*healthListRequest) parseWire(b []byte) error {
	return eachField(b, func(field) error { return nil })
}

// healthList is grpc.health.v1.HealthListResponse.
type healthList struct {
	Statuses map[string]healthResponse `json:"statuses"`
}

func (m *healthList) appendWire(b []byte) []byte {
	for _, name := range slices.Sorted(maps.Keys(m.Statuses)) {
		status := m.Statuses[name]
		entry := appendText(nil, 1, name)
		b = appendText(b, 1, appendText(entry, 2, status.appendWire(nil)))
	}
	return b
}

func (*healthList) parseWire([]byte) error { return errAnswerOnly }
