package api

import (
	"bytes"
	"encoding/binary"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/wrenn/envd/gen/process"
	"github.com/wrenn/envd/internal/process"
)

// message is what a frame for the chunk has to hold.
func message(c process.Chunk) *pb.ProcessEvent {
	d := &pb.ProcessEvent_DataEvent{Offset: proto.Uint64(uint64(c.Offset))}
	switch c.Stream {
	case process.Stdout:
		d.Output = &pb.ProcessEvent_DataEvent_Stdout{Stdout: c.Data}
	case process.Stderr:
		d.Output = &pb.ProcessEvent_DataEvent_Stderr{Stderr: c.Data}
	case process.Terminal:
		d.Output = &pb.ProcessEvent_DataEvent_Pty{Pty: c.Data}
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: d}}
}

// checkFrame compares a frame with what the generated code makes of the same.
func checkFrame(t *testing.T, c process.Chunk) {
	t.Helper()
	start := &pb.StartResponse{Event: message(c)}
	for _, f := range []framer{{json: false}, {json: true}} {
		before := []byte("before")
		frame := f.append(bytes.Clone(before), c)
		rest, ok := bytes.CutPrefix(frame, before)
		if !ok || len(rest) < envelopeSize || rest[0] != 0 {
			t.Fatalf("frame %.50q", frame)
		}
		body := rest[envelopeSize:]
		if n := binary.BigEndian.Uint32(rest[1:]); int(n) != len(body) {
			t.Fatalf("length %d of %d bytes", n, len(body))
		}
		// Start and Connect answer messages of one shape.
		for _, got := range []interface {
			proto.Message
			GetEvent() *pb.ProcessEvent
		}{&pb.StartResponse{}, &pb.ConnectResponse{}} {
			unmarshal := proto.Unmarshal
			if f.json {
				unmarshal = protojson.Unmarshal
			}
			if err := unmarshal(body, got); err != nil {
				t.Fatalf("json %v: %v: %.200q", f.json, err, body)
			}
			if !proto.Equal(got.GetEvent(), start.Event) {
				t.Fatalf("json %v: got %v, expected %v", f.json, got, start)
			}
			if len(got.ProtoReflect().GetUnknown()) > 0 {
				t.Fatalf("unknown fields in %v", got)
			}
		}
		if f.json {
			continue
		}
		// The order of fields is free; their size is not.
		if want := proto.Size(start); len(body) != want {
			t.Fatalf("%d bytes, expected %d", len(body), want)
		}
	}
}

func TestFrame(t *testing.T) {
	for _, s := range []process.Stream{process.Stdout, process.Stderr, process.Terminal} {
		for _, size := range []int{0, 1, 2, 3, 126, 127, 128, 129, 16<<10 - 1, 16 << 10, 32 << 10} {
			for _, offset := range []int64{0, 1, 127, 128, 1<<31 - 1, 1 << 31, 1<<63 - 1} {
				checkFrame(t, process.Chunk{Stream: s, Offset: offset, Data: bytes.Repeat([]byte{0xfe}, size)})
			}
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(uint8(0), int64(0), []byte("hello"))
	f.Add(uint8(1), int64(1<<40), []byte("\x00\xff<&\"\\"))
	f.Add(uint8(2), int64(127), []byte{})
	f.Fuzz(func(t *testing.T, stream uint8, offset int64, data []byte) {
		checkFrame(t, process.Chunk{Stream: process.Stream(stream%3) + process.Stdout, Offset: max(0, offset), Data: data})
	})
}

func TestFramerFor(t *testing.T) {
	for ct, json := range map[string]bool{
		"application/connect+json": true, "application/connect+proto": false,
		"application/connect+json; charset=utf-8": true,
		"application/grpc":                        false, "application/grpc+proto": false, "application/grpc-web+proto": false,
		"application/grpc+json": true, "application/grpc-web+json": true,
	} {
		if got := framerFor(ct).json; got != json {
			t.Errorf("%s: json %v", ct, got)
		}
	}
}
