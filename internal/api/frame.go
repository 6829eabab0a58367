package api

import (
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/wrenn/envd/internal/process"
)

// envelopeSize is the size of what precedes each message of a stream, alike in
// Connect, gRPC and gRPC-Web: a byte of flags and the length in four.
const envelopeSize = 5

// framer appends output to a response as messages in their envelopes: what
// connect-go would do, in one copy instead of three. It serves StartResponse
// and ConnectResponse, which are the same on the wire. What is not output goes
// through connect-go.
type framer struct {
	json bool
}

// framerFor takes the codec from the Content-Type of the request.
func framerFor(contentType string) framer {
	return framer{json: strings.Contains(contentType, "json")}
}

func (f framer) append(dst []byte, c process.Chunk) []byte {
	begin := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0) // no flags: not compressed, not the last
	if f.json {
		dst = appendJSON(dst, c)
	} else {
		dst = appendProto(dst, c)
	}
	binary.BigEndian.PutUint32(dst[begin+1:], uint32(len(dst)-begin-envelopeSize))
	return dst
}

// The path from a response to its output, and the output's names, by stream.
// That they agree with the messages is tested.
const (
	eventField  protowire.Number = 1
	dataField   protowire.Number = 2
	offsetField protowire.Number = 1000
)

var outputField = map[process.Stream]struct {
	number protowire.Number
	name   string
}{
	process.Stdout:   {1, "stdout"},
	process.Stderr:   {2, "stderr"},
	process.Terminal: {3, "pty"},
}

func appendProto(dst []byte, c process.Chunk) []byte {
	field, offset := outputField[c.Stream].number, uint64(c.Offset)
	data := protowire.SizeTag(field) + protowire.SizeBytes(len(c.Data)) +
		protowire.SizeTag(offsetField) + protowire.SizeVarint(offset)
	event := protowire.SizeTag(dataField) + protowire.SizeBytes(data)

	dst = protowire.AppendTag(dst, eventField, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(event))
	dst = protowire.AppendTag(dst, dataField, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(data))
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	dst = protowire.AppendBytes(dst, c.Data)
	dst = protowire.AppendTag(dst, offsetField, protowire.VarintType)
	return protowire.AppendVarint(dst, offset)
}

func appendJSON(dst []byte, c process.Chunk) []byte {
	dst = append(dst, `{"event":{"data":{"`...)
	dst = append(dst, outputField[c.Stream].name...)
	dst = append(dst, `":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, c.Data)
	dst = append(dst, `","offset":"`...)
	dst = strconv.AppendInt(dst, c.Offset, 10)
	return append(dst, `"}}}`...)
}
