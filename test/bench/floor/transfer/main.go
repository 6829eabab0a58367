// Command transfer is the floor of file transfer: an HTTP server of plain net/http
// handlers that copy files. GET /files?path=… sends one, with &gzip=1 through
// the standard library's gzip at its default level; POST writes one. It prints
// its address first.
package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
)

func main() {
	http.HandleFunc("GET /files", handle(get))
	http.HandleFunc("POST /files", handle(post))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		fmt.Println(l.Addr())
		err = http.Serve(l, nil)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func handle(serve func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := serve(w, r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

func get(w http.ResponseWriter, r *http.Request) error {
	f, err := os.Open(r.FormValue("path"))
	if err != nil {
		return err
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.FormValue("gzip") != "" {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		if _, err := io.Copy(z, f); err != nil {
			return err
		}
		return z.Close()
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Length", strconv.FormatInt(st.Size(), 10))
	_, err = io.Copy(w, f)
	return err
}

func post(w http.ResponseWriter, r *http.Request) error {
	path := r.URL.Query().Get("path")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r.Body); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = fmt.Fprintf(w, `[{"path":%q}]`, path)
	return err
}
