package life

import (
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"testing"
)

// fakeMMDS is the metadata service of Firecracker, version 2, as far as the
// daemon sees it.
type fakeMMDS struct {
	mu   sync.Mutex
	data map[string]string // guarded by mu
}

// set is what the host does after the boot and after a restore.
func (m *fakeMMDS) set(data map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = data
}

func serveMMDS(t *testing.T, host *place) *fakeMMDS {
	t.Helper()
	m := &fakeMMDS{}
	var l net.Listener
	var err error
	host.do(func() { l, err = net.Listen("tcp", metadata+":80") })
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-metadata-token-ttl-seconds") != "60" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte("metadata-token"))
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-metadata-token") != "metadata-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		_ = json.NewEncoder(w).Encode(m.data)
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return m
}
