// Command rpc is the floor of the binary's size, and one of its start: the
// services, without an implementation, on connect-go over HTTP/1.1 and h2c, on
// --port.
package main

import (
	"flag"
	"log"
	"net"
	"net/http"
	"strconv"

	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	"github.com/wrenn/envd/gen/process/processconnect"
)

func main() {
	port := flag.Int("port", 49983, "TCP port")
	flag.Parse()
	mux := http.NewServeMux()
	mux.Handle(processconnect.NewProcessHandler(processconnect.UnimplementedProcessHandler{}))
	mux.Handle(filesystemconnect.NewFilesystemHandler(filesystemconnect.UnimplementedFilesystemHandler{}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) })
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Addr: net.JoinHostPort("", strconv.Itoa(*port)), Handler: mux, Protocols: protocols}
	log.Fatal(s.ListenAndServe())
}
