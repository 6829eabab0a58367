package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var errAnswerOnly = errors.New("message is only ever sent")

// The two versions of server reflection, which are alike on the wire.
const (
	reflectionName      = "grpc.reflection.v1.ServerReflection"
	reflectionAlphaName = "grpc.reflection.v1alpha.ServerReflection"
)

// newReflectionHandler makes gRPC server reflection under one of its names. By
// it, tools such as grpcurl learn what services take.
func newReflectionHandler(name string, services []string, opts ...connect.HandlerOption) (path string, _ http.Handler) {
	path = "/" + name + "/"
	mux := http.NewServeMux()
	procedure := path + "ServerReflectionInfo"
	mux.Handle(procedure, connect.NewBidiStreamHandler(procedure, reflector{services}.serve, opts...))
	return path, mux
}

// reflector answers what the messages in the binary look like. It knows nothing
// before it is asked.
type reflector struct {
	services []string
}

func (r reflector) serve(_ context.Context, stream *connect.BidiStream[reflectionRequest, reflectionResponse]) error {
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		res := &reflectionResponse{request: req}
		if err := r.answer(req, res); err != nil {
			return err
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}

// answer fills res in. What is not found is an answer; an error ends the
// stream.
func (r reflector) answer(req *reflectionRequest, res *reflectionResponse) (err error) {
	switch req.kind {
	case askFile:
		res.files, err = filesByPath(req.name)
	case askSymbol:
		res.files, err = filesBySymbol(req.name)
	case askExtension:
		res.files, err = filesByExtension(req.name, req.extension)
	case askExtensions:
		res.base = req.name
		res.extensions, err = extensionsOf(req.name)
	case askServices:
		res.services = r.services
	default:
		return invalid("reflection: message without a request")
	}
	res.err = err
	return nil
}

// filesByPath answers the encoded descriptor of a file, and then those of the
// files that it imports, directly or not.
func filesByPath(path string) ([][]byte, error) {
	if path == healthPath {
		return [][]byte{healthDescriptor()}, nil
	}
	file, err := protoregistry.GlobalFiles.FindFileByPath(path)
	if err != nil {
		return nil, err
	}
	return withImports(file)
}

// filesBySymbol answers the file that defines a service, method, message,
// field, enum or enum value.
func filesBySymbol(name string) ([][]byte, error) {
	if slices.Contains(healthSymbols(), name) {
		return filesByPath(healthPath)
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	return withImports(d.ParentFile())
}

func filesByExtension(message string, number int32) ([][]byte, error) {
	x, err := protoregistry.GlobalTypes.FindExtensionByNumber(protoreflect.FullName(message), protoreflect.FieldNumber(number))
	if err != nil {
		return nil, err
	}
	return withImports(x.TypeDescriptor().ParentFile())
}

// extensionsOf lists the numbers by which a message is extended, none for one
// that is not.
func extensionsOf(message string) ([]int32, error) {
	name := protoreflect.FullName(message)
	if _, err := protoregistry.GlobalFiles.FindDescriptorByName(name); err != nil && !slices.Contains(healthSymbols(), message) {
		return nil, err
	}
	numbers := []int32{}
	protoregistry.GlobalTypes.RangeExtensionsByMessage(name, func(x protoreflect.ExtensionType) bool {
		numbers = append(numbers, int32(x.TypeDescriptor().Number()))
		return true
	})
	slices.Sort(numbers)
	return numbers, nil
}

func withImports(file protoreflect.FileDescriptor) (encoded [][]byte, err error) {
	queue := []protoreflect.FileDescriptor{file}
	seen := map[string]bool{file.Path(): true}
	for len(queue) > 0 {
		file, queue = queue[0], queue[1:]
		b, err := encodedFile(file)
		if err != nil {
			return nil, err
		}
		encoded = append(encoded, b)
		for imports, i := file.Imports(), 0; i < imports.Len(); i++ {
			if f := imports.Get(i); !seen[f.Path()] {
				seen[f.Path()] = true
				queue = append(queue, f)
			}
		}
	}
	return encoded, nil
}

// encodedFile answers a file's descriptor as the generated code holds it. It
// gives that out with any message of the file, compressed; to encode the
// registry's form anew would take package protodesc, which is slow to load.
func encodedFile(file protoreflect.FileDescriptor) ([]byte, error) {
	for messages, i := file.Messages(), 0; i < messages.Len(); i++ {
		t, err := protoregistry.GlobalTypes.FindMessageByName(messages.Get(i).FullName())
		if err != nil {
			continue // an entry of a map has no type
		}
		if m, ok := t.Zero().Interface().(interface{ Descriptor() ([]byte, []int) }); ok {
			compressed, _ := m.Descriptor()
			return inflate(compressed)
		}
	}
	return nil, fmt.Errorf("%w: file %s", protoregistry.NotFound, file.Path())
}

func inflate(compressed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("read descriptor: %w", err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("read descriptor: %w", err)
	}
	return b, nil
}

// What a reflectionRequest asks for: the fields of its oneof.
const (
	askFile       protowire.Number = 3
	askSymbol     protowire.Number = 4
	askExtension  protowire.Number = 5
	askExtensions protowire.Number = 6
	askServices   protowire.Number = 7
)

// reflectionRequest is ServerReflectionRequest of grpc.reflection.
type reflectionRequest struct {
	raw       []byte // all of it: the answer repeats it
	host      string
	kind      protowire.Number // one of those above; 0 for nothing
	name      string           // of the file, symbol or extended message
	extension int32            // for askExtension
}

func (m *reflectionRequest) appendWire(b []byte) []byte { return append(b, m.raw...) }

func (m *reflectionRequest) parseWire(b []byte) error {
	m.raw = bytes.Clone(b)
	return eachField(b, func(f field) (err error) {
		if f.kind != protowire.BytesType {
			return nil
		}
		switch f.number {
		case 1:
			m.host, err = f.text()
		case askFile, askSymbol, askExtensions, askServices:
			m.kind = f.number
			m.name, err = f.text()
		case askExtension:
			m.kind = f.number
			err = m.parseExtension(f.bytes)
		}
		return err
	})
}

// parseExtension reads an ExtensionRequest.
func (m *reflectionRequest) parseExtension(b []byte) error {
	return eachField(b, func(f field) (err error) {
		switch {
		case f.number == 1:
			m.name, err = f.text()
		case f.number == 2 && f.kind == protowire.VarintType:
			m.extension = int32(f.varint)
		}
		return err
	})
}

// UnmarshalJSON refuses: descriptors are binary, and so are their readers.
func (*reflectionRequest) UnmarshalJSON([]byte) error {
	return errors.New("reflection is not available in JSON")
}

// reflectionResponse is ServerReflectionResponse of grpc.reflection. What
// answers the request's kind is set, or err.
type reflectionResponse struct {
	request    *reflectionRequest
	files      [][]byte
	base       string
	extensions []int32
	services   []string
	err        error // not found
}

// appendWire encodes ServerReflectionResponse: valid_host, original_request,
// and the answer.
func (m *reflectionResponse) appendWire(b []byte) []byte {
	b = appendText(b, 1, m.request.host)
	b = appendText(b, 2, m.request.raw)
	var answer []byte
	if m.err != nil {
		answer = appendNumber(answer, 1, uint64(connect.CodeNotFound))
		// What protoregistry says of invalid names repeats them.
		return appendText(b, 7, appendText(answer, 2, strings.ToValidUTF8(m.err.Error(), "?")))
	}
	switch m.request.kind {
	case askExtensions:
		answer = appendText(answer, 1, m.base)
		for _, n := range m.extensions {
			answer = appendNumber(answer, 2, uint64(n))
		}
		return appendText(b, 5, answer)
	case askServices:
		for _, name := range m.services {
			answer = appendText(answer, 1, appendText(nil, 1, name))
		}
		return appendText(b, 6, answer)
	default:
		for _, file := range m.files {
			answer = appendText(answer, 1, file)
		}
		return appendText(b, 4, answer)
	}
}

func (*reflectionResponse) parseWire([]byte) error { return errAnswerOnly }
