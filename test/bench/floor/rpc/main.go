// Command rpc is the floor of the binary's size: the services, without an
// implementation, on connect-go over HTTP/1.1 and h2c.
package main

import (
	"log"
	"net/http"

	"github.com/wrenn/envd/gen/filesystem/filesystemconnect"
	"github.com/wrenn/envd/gen/process/processconnect"
)

func main() {
	mux := http.NewServeMux()
	mux.Handle(processconnect.NewProcessHandler(processconnect.UnimplementedProcessHandler{}))
	mux.Handle(filesystemconnect.NewFilesystemHandler(filesystemconnect.UnimplementedFilesystemHandler{}))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Addr: "127.0.0.1:49983", Handler: mux, Protocols: protocols}
	log.Fatal(s.ListenAndServe())
}
