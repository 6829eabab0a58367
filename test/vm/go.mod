module github.com/wrenn/envd/test/vm

go 1.26.0

require (
	connectrpc.com/connect v1.21.1
	github.com/wrenn/envd v0.0.0
	golang.org/x/sys v0.49.0
)

require google.golang.org/protobuf v1.36.12 // indirect

replace github.com/wrenn/envd => ../..
