package api

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestHealthDescriptor checks that the file coded by hand is one, and that the
// list of its symbols is what it defines.
func TestHealthDescriptor(t *testing.T) {
	d := &descriptorpb.FileDescriptorProto{}
	if err := proto.Unmarshal(healthDescriptor(), d); err != nil {
		t.Fatal(err)
	}
	file, err := protodesc.NewFile(d, new(protoregistry.Files))
	if err != nil {
		t.Fatal(err)
	}
	if file.Path() != healthPath || file.Services().Len() != 1 {
		t.Errorf("file %v", file)
	}
	files := new(protoregistry.Files)
	if err := files.RegisterFile(file); err != nil {
		t.Fatal(err)
	}
	for _, name := range healthSymbols() {
		if _, err := files.FindDescriptorByName(protoreflect.FullName(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if res, err := filesBySymbol(name); err != nil || !bytes.Equal(res[0], healthDescriptor()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReflectionWithoutJSON checks that Connect clients that ask in JSON are
// told so.
func TestReflectionWithoutJSON(t *testing.T) {
	err := jsonCodec{"json"}.Unmarshal([]byte(`{"listServices":""}`), &reflectionRequest{})
	if err == nil || !strings.Contains(err.Error(), "JSON") {
		t.Error(err)
	}
}

// FuzzHandWire feeds the parsers of hand-coded messages. Whatever they accept
// has an answer that is well formed.
func FuzzHandWire(f *testing.F) {
	for _, m := range []reflectionRequest{
		{raw: appendText(nil, askSymbol, "process.Process")},
		{raw: appendText(appendText(nil, 1, "host"), askFile, healthPath)},
		{raw: appendText(nil, askExtension, appendNumber(appendText(nil, 1, "process.StartRequest"), 2, 7))},
		{raw: appendText(nil, askExtensions, "process.StartRequest")},
		{raw: appendText(nil, askServices, "")},
		{raw: appendText(nil, askSymbol, "\xff")},
	} {
		f.Add(m.raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = new(healthRequest).parseWire(b)
		_ = new(healthResponse).parseWire(b)
		_ = new(healthListRequest).parseWire(b)
		req, res := new(reflectionRequest), new(reflectionResponse)
		if req.parseWire(b) != nil {
			return
		}
		res.request = req
		if (reflector{services: []string{"a", "b"}}).answer(req, res) != nil {
			return
		}
		if err := eachField(res.appendWire(nil), func(field) error { return nil }); err != nil {
			t.Errorf("answer to %q: %v", b, err)
		}
	})
}
