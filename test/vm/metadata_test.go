package vm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// metadata is a metadata service as Firecracker has it, version 2: a token
// first, then the document.
type metadata struct {
	server *http.Server
	done   chan error

	mu       sync.Mutex
	token    string            // guarded by mu
	document map[string]string // guarded by mu; empty until the host fills it in
	reads    int               // guarded by mu
}

func serveMetadata(l *link) (*metadata, error) {
	listener, err := l.listen(metadataIP + ":80")
	if err != nil {
		return nil, fmt.Errorf("metadata service: %w", err)
	}
	m := &metadata{token: rand.Text(), done: make(chan error, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", m.serveToken)
	mux.HandleFunc("GET /{$}", m.serveDocument)
	m.server = &http.Server{Handler: mux, ReadHeaderTimeout: stepLimit}
	go func() { m.done <- m.server.Serve(listener) }()
	return m, nil
}

func (m *metadata) serveToken(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-metadata-token-ttl-seconds") == "" {
		http.Error(w, "no time to live", http.StatusBadRequest)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	fmt.Fprint(w, m.token)
}

func (m *metadata) serveDocument(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	if r.Header.Get("X-metadata-token") != m.token || r.Header.Get("Accept") != "application/json" {
		http.Error(w, "no valid token", http.StatusUnauthorized)
		return
	}
	_ = json.NewEncoder(w).Encode(m.document)
}

func (m *metadata) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if m.server.Shutdown(ctx) != nil {
		_ = m.server.Close()
	}
	if err := <-m.done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metadata service: %w", err)
	}
	return nil
}

// set fills the document in.
func (m *metadata) set(document map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.document = document
}
