module github.com/wrenn/envd

go 1.26.0

require (
	connectrpc.com/connect v1.21.1
	connectrpc.com/cors v0.1.0
	github.com/klauspost/compress v1.20.4
	github.com/rs/cors v1.11.1
	golang.org/x/sys v0.49.0
	google.golang.org/protobuf v1.36.12
)
