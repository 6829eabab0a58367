package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
)

// The services that gRPC tools expect of every server, health and reflection,
// are few messages that never change. They are coded by hand here and in
// grpchealth.go and reflection.go: generated, they and the descriptors they
// need cost a millisecond at each start of the daemon.

// handMessage is a message that codes itself.
type handMessage interface {
	appendWire(b []byte) []byte
	parseWire(b []byte) error
}

// handCodecs are the codecs of handMessages, under the names that connect-go
// looks for. JSON is as encoding/json makes it of the type.
func handCodecs() connect.HandlerOption {
	return connect.WithHandlerOptions(
		connect.WithCodec(wireCodec{}),
		connect.WithCodec(jsonCodec{"json"}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
	)
}

type wireCodec struct{}

func (wireCodec) Name() string { return "proto" }

func (wireCodec) Marshal(m any) ([]byte, error) { return m.(handMessage).appendWire(nil), nil }

func (wireCodec) Unmarshal(b []byte, m any) error { return m.(handMessage).parseWire(b) }

type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

func (jsonCodec) Marshal(m any) ([]byte, error) { return json.Marshal(m) }

func (jsonCodec) Unmarshal(b []byte, m any) error { return json.Unmarshal(b, m) }

// field is one field of a message on the wire.
type field struct {
	number protowire.Number
	kind   protowire.Type
	bytes  []byte // of BytesType; shares memory with the message
	varint uint64 // of VarintType
}

// eachField yields the fields of a message in their order. Those of kinds that
// no handMessage has are left out.
func eachField(b []byte, yield func(field) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("read tag: %w", protowire.ParseError(n))
		}
		b = b[n:]
		f := field{number: number, kind: kind}
		switch kind {
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			f.varint, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("read field %d: %w", number, protowire.ParseError(n))
		}
		b = b[n:]
		if kind != protowire.BytesType && kind != protowire.VarintType {
			continue
		}
		if err := yield(f); err != nil {
			return err
		}
	}
	return nil
}

var errNotUTF8 = errors.New("string is not valid UTF-8")

// text is the value of a string field.
func (f field) text() (string, error) {
	if f.kind != protowire.BytesType || !utf8.Valid(f.bytes) {
		return "", fmt.Errorf("field %d: %w", f.number, errNotUTF8)
	}
	return string(f.bytes), nil
}

// appendText appends a string or bytes field, appendNumber one of a number.
func appendText[T string | []byte](b []byte, n protowire.Number, v T) []byte {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	return append(protowire.AppendVarint(b, uint64(len(v))), v...)
}

func appendNumber(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}
