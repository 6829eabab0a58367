package api

import (
	"encoding/json"
	"errors"
	"net/http"
)

// maxCompose bounds the body of POST /files/compose, in bytes: it is decoded as a
// whole, and a list of empty paths takes ten times its size.
const maxCompose = 4 << 20

// composeRequest is the body of POST /files/compose.
type composeRequest struct {
	SourcePaths []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// compose answers POST /files/compose.
func (t *fileTransfer) compose(w http.ResponseWriter, r *http.Request) {
	if err := t.composed(w, r); err != nil {
		t.fail(w, r, err)
	}
}

func (t *fileTransfer) composed(w http.ResponseWriter, r *http.Request) error {
	var req composeRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCompose)).Decode(&req); err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return statusError{http.StatusRequestEntityTooLarge, err}
		}
		return badRequest("request: %w", err)
	}
	if req.Username == "" {
		req.Username = t.Settings.Load().User
	}
	acct, err := t.Accounts.Lookup(req.Username)
	if err != nil {
		return err
	}
	e, err := t.view(acct).Compose(req.Destination, req.SourcePaths, metadataIn(r.Header))
	if err != nil {
		return err
	}
	return answer(w, writtenFile(e))
}
