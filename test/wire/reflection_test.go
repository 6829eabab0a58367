package wire

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	alphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/wrenn/envd/gen/filesystem"
)

// The two services that gRPC tools ask for, as grpc-go's own messages see them.

var served = []string{"filesystem.Filesystem", "process.Process"}

func TestGRPCHealth(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.ours(t)
		c := healthpb.NewHealthClient(dialGRPC(d))
		for _, name := range append([]string{""}, served...) {
			res, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
			if err != nil || res.Status != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("%q: %v, %v", name, res, err)
			}
		}
		if _, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "nothing"}); status.Code(err) != codes.NotFound {
			t.Errorf("an unknown service: %v", err)
		}
		list, err := c.List(t.Context(), &healthpb.HealthListRequest{})
		if err != nil || len(list.Statuses) != len(served)+1 || list.Statuses[served[0]].GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("list: %v, %v", list, err)
		}
	})
}

// TestGRPCHealthWatch checks that a watch answers at once and stays open until
// the client ends it.
func TestGRPCHealthWatch(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.ours(t)
		for name, want := range map[string]healthpb.HealthCheckResponse_ServingStatus{
			"process.Process": healthpb.HealthCheckResponse_SERVING,
			"nothing":         healthpb.HealthCheckResponse_SERVICE_UNKNOWN,
		} {
			ctx, cancel := context.WithCancel(t.Context())
			s, err := healthpb.NewHealthClient(dialGRPC(d)).Watch(ctx, &healthpb.HealthCheckRequest{Service: name})
			if err != nil {
				t.Fatal(err)
			}
			if res, err := s.Recv(); err != nil || res.Status != want {
				t.Errorf("%s: %v, %v", name, res, err)
			}
			cancel()
			if _, err := s.Recv(); status.Code(err) != codes.Canceled {
				t.Errorf("%s: after the cancellation: %v", name, err)
			}
		}
	})
}

// TestHealthInJSON checks the health service as a browser or curl calls it.
func TestHealthInJSON(t *testing.T) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.ours(t)
		for _, c := range []struct {
			method, body, want string
			status             int
		}{
			{"Check", `{"service":"process.Process"}`, `{"status":"SERVING"}`, 200},
			{"Check", `{}`, `{"status":"SERVING"}`, 200},
			{"Check", `{"service":"nothing"}`, `"code":"not_found"`, 404},
			{"Check", `{"service":1}`, `"code":"invalid_argument"`, 400},
			{"List", `{}`, `"process.Process":{"status":"SERVING"}`, 200},
		} {
			res, err := http.Post(d.base+"/grpc.health.v1.Health/"+c.method, "application/json", strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil || res.StatusCode != c.status || !strings.Contains(string(b), c.want) {
				t.Errorf("%s %s: %s %s, %v", c.method, c.body, res.Status, b, err)
			}
		}
	})
}

// asker is one reflection stream, of either version.
type asker func(*reflectionpb.ServerReflectionRequest) (*reflectionpb.ServerReflectionResponse, error)

// askV1 opens a stream of grpc.reflection.v1, askV1Alpha one of v1alpha: its
// messages differ in their names alone.
func askV1(t *testing.T, d *daemon) asker {
	s, err := reflectionpb.NewServerReflectionClient(dialGRPC(d)).ServerReflectionInfo(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return func(req *reflectionpb.ServerReflectionRequest) (*reflectionpb.ServerReflectionResponse, error) {
		if err := s.Send(req); err != nil {
			t.Fatal(err)
		}
		return s.Recv()
	}
}

func askV1Alpha(t *testing.T, d *daemon) asker {
	s, err := alphapb.NewServerReflectionClient(dialGRPC(d)).ServerReflectionInfo(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return func(req *reflectionpb.ServerReflectionRequest) (*reflectionpb.ServerReflectionResponse, error) {
		old := &alphapb.ServerReflectionRequest{} //nolint:staticcheck // older tools speak it
		recode(t, req, old)
		if err := s.Send(old); err != nil {
			t.Fatal(err)
		}
		answer, err := s.Recv()
		if err != nil {
			return nil, err
		}
		res := &reflectionpb.ServerReflectionResponse{}
		recode(t, answer, res)
		return res, nil
	}
}

func recode(t *testing.T, from, to proto.Message) {
	t.Helper()
	b, err := proto.Marshal(from)
	if err == nil {
		err = proto.Unmarshal(b, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func bySymbol(name string) *reflectionpb.ServerReflectionRequest {
	return &reflectionpb.ServerReflectionRequest{
		Host:           "here",
		MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name},
	}
}

func byName(name string) *reflectionpb.ServerReflectionRequest {
	return &reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_FileByFilename{FileByFilename: name},
	}
}

// eachReflection runs f with a stream of each version.
func eachReflection(t *testing.T, f func(t *testing.T, ask asker)) {
	everyDaemon(t, func(t *testing.T, d *daemon) {
		d.ours(t)
		t.Run("v1", func(t *testing.T) { f(t, askV1(t, d)) })
		t.Run("v1alpha", func(t *testing.T) { f(t, askV1Alpha(t, d)) })
	})
}

// TestGRPCReflection does what grpcurl does: it lists the services and builds
// each of them from the descriptors alone.
func TestGRPCReflection(t *testing.T) {
	eachReflection(t, func(t *testing.T, ask asker) {
		res, err := ask(&reflectionpb.ServerReflectionRequest{
			Host:           "here",
			MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{ListServices: "*"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if res.ValidHost != "here" || res.OriginalRequest.GetListServices() != "*" {
			t.Errorf("answer to another question: %v", res)
		}
		var names []string
		for _, svc := range res.GetListServicesResponse().GetService() {
			names = append(names, svc.Name)
		}
		slices.Sort(names)
		if want := []string{served[0], "grpc.health.v1.Health", served[1]}; !slices.Equal(names, want) {
			t.Errorf("services %v, want %v", names, want)
		}
		methods := map[string]int{"process.Process": 8, "filesystem.Filesystem": 9, "grpc.health.v1.Health": 3}
		for _, name := range names {
			res, err := ask(bySymbol(name))
			if err != nil {
				t.Fatal(err)
			}
			svc, ok := assemble(t, res, name).(protoreflect.ServiceDescriptor)
			if !ok || svc.Methods().Len() != methods[name] {
				t.Errorf("%s: %v", name, svc)
			}
		}
	})
}

// assemble makes the descriptor called name from nothing but an answer's files.
func assemble(t *testing.T, res *reflectionpb.ServerReflectionResponse, name string) protoreflect.Descriptor {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	for _, b := range res.GetFileDescriptorResponse().GetFileDescriptorProto() {
		fd := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(b, fd); err != nil {
			t.Fatal(err)
		}
		set.File = append(set.File, fd)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	d, err := files.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

// TestReflectedDescriptors compares what is answered for every symbol with
// the descriptors that the generated code holds: ours, and grpc-go's of the
// health service.
func TestReflectedDescriptors(t *testing.T) {
	eachReflection(t, func(t *testing.T, ask asker) {
		for _, path := range []string{"process/process.proto", "filesystem/filesystem.proto", "google/protobuf/timestamp.proto", "grpc/health/v1/health.proto"} {
			want, err := protoregistry.GlobalFiles.FindFileByPath(path)
			if err != nil {
				t.Fatal(err)
			}
			res, err := ask(byName(path))
			if err != nil {
				t.Fatal(err)
			}
			b := res.GetFileDescriptorResponse().GetFileDescriptorProto()
			if len(b) != 1+want.Imports().Len() {
				t.Errorf("%s: %d files, %v", path, len(b), res.GetErrorResponse())
				continue
			}
			got, full := &descriptorpb.FileDescriptorProto{}, protodesc.ToFileDescriptorProto(want)
			if err := proto.Unmarshal(b[0], got); err != nil {
				t.Fatal(err)
			}
			got.Options, full.Options = nil, nil // where other languages put their code
			if !proto.Equal(got, full) {
				t.Errorf("%s: got\n%v\nwant\n%v", path, got, full)
			}
			for _, name := range symbols(want) {
				res, err := ask(bySymbol(name))
				if err != nil || !slices.EqualFunc(res.GetFileDescriptorResponse().GetFileDescriptorProto(), b, slices.Equal) {
					t.Errorf("%s is not in %s: %v, %v", name, path, res.GetErrorResponse(), err)
				}
			}
		}
	})
}

// symbols lists the full names of everything defined in a file.
func symbols(file protoreflect.FileDescriptor) (names []string) {
	add := func(d protoreflect.Descriptor) { names = append(names, string(d.FullName())) }
	enums := func(list protoreflect.EnumDescriptors) {
		for i := range list.Len() {
			add(list.Get(i))
			for j := range list.Get(i).Values().Len() {
				add(list.Get(i).Values().Get(j))
			}
		}
	}
	var messages func(protoreflect.MessageDescriptors)
	messages = func(list protoreflect.MessageDescriptors) {
		for i := range list.Len() {
			m := list.Get(i)
			add(m)
			for j := range m.Fields().Len() {
				add(m.Fields().Get(j))
			}
			enums(m.Enums())
			messages(m.Messages())
		}
	}
	messages(file.Messages())
	enums(file.Enums())
	for i := range file.Services().Len() {
		svc := file.Services().Get(i)
		add(svc)
		for j := range svc.Methods().Len() {
			add(svc.Methods().Get(j))
		}
	}
	return names
}

// TestReflectionOfNothing checks that questions without an answer get an error
// as their answer, and that the stream goes on.
func TestReflectionOfNothing(t *testing.T) {
	eachReflection(t, func(t *testing.T, ask asker) {
		for name, req := range map[string]*reflectionpb.ServerReflectionRequest{
			"file":    byName("no/such.proto"),
			"symbol":  bySymbol("no.Such"),
			"invalid": bySymbol(".."),
			"empty":   bySymbol(""),
			"package": bySymbol("process"),
			"extension": {MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingExtension{
				FileContainingExtension: &reflectionpb.ExtensionRequest{ContainingType: "process.StartRequest", ExtensionNumber: 7},
			}},
			"extensions": {MessageRequest: &reflectionpb.ServerReflectionRequest_AllExtensionNumbersOfType{
				AllExtensionNumbersOfType: "no.Such",
			}},
		} {
			res, err := ask(req)
			if err != nil || res.GetErrorResponse().GetErrorCode() != int32(codes.NotFound) || res.GetErrorResponse().GetErrorMessage() == "" {
				t.Errorf("%s: %v, %v", name, res, err)
			}
		}
		for _, name := range []string{"process.StartRequest", "grpc.health.v1.HealthCheckRequest"} {
			res, err := ask(&reflectionpb.ServerReflectionRequest{
				MessageRequest: &reflectionpb.ServerReflectionRequest_AllExtensionNumbersOfType{AllExtensionNumbersOfType: name},
			})
			answer := res.GetAllExtensionNumbersResponse()
			if err != nil || answer.GetBaseTypeName() != name || len(answer.GetExtensionNumber()) != 0 {
				t.Errorf("extensions of %s: %v, %v", name, res, err)
			}
		}
		if _, err := ask(&reflectionpb.ServerReflectionRequest{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("no question: %v", err)
		}
	})
}
