package api

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
)

// jsonCodec is protojson, with a short way for output: base64 straight into
// the message, without reflection. Unknown fields are accepted, since newer
// clients send some.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

func (c jsonCodec) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

func (c jsonCodec) MarshalAppend(dst []byte, m any) ([]byte, error) {
	if e, ok := m.(interface{ GetEvent() *pb.ProcessEvent }); ok {
		if d := e.GetEvent().GetData(); d != nil {
			return appendData(dst, d), nil
		}
	}
	msg, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("marshal JSON: %T is no message", m)
	}
	return protojson.MarshalOptions{}.MarshalAppend(dst, msg)
}

// appendData writes a StartResponse or ConnectResponse that holds d.
func appendData(dst []byte, d *pb.ProcessEvent_DataEvent) []byte {
	dst = append(dst, `{"event":{"data":{`...)
	switch out := d.Output.(type) {
	case *pb.ProcessEvent_DataEvent_Stdout:
		dst = appendBytes(append(dst, `"stdout":"`...), out.Stdout)
	case *pb.ProcessEvent_DataEvent_Stderr:
		dst = appendBytes(append(dst, `"stderr":"`...), out.Stderr)
	case *pb.ProcessEvent_DataEvent_Pty:
		dst = appendBytes(append(dst, `"pty":"`...), out.Pty)
	}
	if d.Offset != nil {
		if d.Output != nil {
			dst = append(dst, ',')
		}
		dst = append(dst, `"offset":"`...)
		dst = strconv.AppendUint(dst, *d.Offset, 10)
		dst = append(dst, '"')
	}
	return append(dst, `}}}`...)
}

func appendBytes(dst, b []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(dst, b), '"')
}

func (c jsonCodec) MarshalStable(m any) ([]byte, error) { return c.Marshal(m) }

// IsBinary says that messages are text.
func (c jsonCodec) IsBinary() bool { return false }

func (c jsonCodec) Unmarshal(b []byte, m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal JSON: %T is no message", m)
	}
	if len(b) == 0 {
		return errors.New("unmarshal JSON: empty message, expected at least {}")
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, msg); err != nil {
		return fmt.Errorf("unmarshal JSON: %w", err)
	}
	return nil
}
