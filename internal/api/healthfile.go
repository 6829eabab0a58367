package api

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// healthPath is the file in which grpc.health.v1 is defined, for reflection:
// its messages, coded by hand, have no generated descriptor.
const (
	healthPath    = "grpc/health/v1/health.proto"
	healthPackage = "grpc.health.v1"
)

// Values of google/protobuf/descriptor.proto.
const (
	labelOptional = 1
	labelRepeated = 3
	typeString    = 9
	typeMessage   = 11
	typeEnum      = 14
)

// healthDescriptor encodes the FileDescriptorProto of healthPath.
func healthDescriptor() []byte {
	response := describe("HealthCheckResponse",
		part{2, describeField("status", 1, labelOptional, typeEnum, "HealthCheckResponse.ServingStatus")},
		part{4, describe("ServingStatus",
			part{2, describeValue("UNKNOWN", 0)}, part{2, describeValue("SERVING", 1)},
			part{2, describeValue("NOT_SERVING", 2)}, part{2, describeValue("SERVICE_UNKNOWN", 3)})})
	list := describe("HealthListResponse",
		part{2, describeField("statuses", 1, labelRepeated, typeMessage, "HealthListResponse.StatusesEntry")},
		part{3, describe("StatusesEntry",
			part{2, describeField("key", 1, labelOptional, typeString, "")},
			part{2, describeField("value", 2, labelOptional, typeMessage, "HealthCheckResponse")},
			part{7, appendNumber(nil, 7, 1)})}) // options: map_entry
	return describe(healthPath,
		part{2, []byte(healthPackage)},
		part{4, describe("HealthCheckRequest", part{2, describeField("service", 1, labelOptional, typeString, "")})},
		part{4, response},
		part{4, describe("HealthListRequest")},
		part{4, list},
		part{6, describe("Health",
			part{2, describeMethod("Check", "HealthCheckRequest", "HealthCheckResponse")},
			part{2, describeMethod("List", "HealthListRequest", "HealthListResponse")},
			part{2, appendNumber(describeMethod("Watch", "HealthCheckRequest", "HealthCheckResponse"), 6, 1)})}, // server_streaming
		part{12, []byte("proto3")})
}

// part is a field of a descriptor that is a string or a message.
type part struct {
	number protowire.Number
	value  []byte
}

// describe encodes a descriptor: all of them have their name first.
func describe(name string, parts ...part) []byte {
	b := appendText(nil, 1, name)
	for _, p := range parts {
		b = appendText(b, p.number, p.value)
	}
	return b
}

func describeField(name string, number, label, kind uint64, typeName string) []byte {
	b := describe(name)
	b = appendNumber(b, 3, number)
	b = appendNumber(b, 4, label)
	b = appendNumber(b, 5, kind)
	if typeName != "" {
		b = appendText(b, 6, "."+healthPackage+"."+typeName)
	}
	return appendText(b, 10, name) // json_name: no name of ours has an underscore
}

func describeValue(name string, number uint64) []byte {
	return appendNumber(describe(name), 2, number)
}

func describeMethod(name, input, output string) []byte {
	return describe(name,
		part{2, []byte("." + healthPackage + "." + input)},
		part{3, []byte("." + healthPackage + "." + output)})
}

// healthSymbols lists the full names of what healthDescriptor defines.
func healthSymbols() []string {
	names := strings.Fields(`Health Health.Check Health.List Health.Watch
		HealthCheckRequest HealthCheckRequest.service
		HealthCheckResponse HealthCheckResponse.status HealthCheckResponse.ServingStatus
		HealthCheckResponse.UNKNOWN HealthCheckResponse.SERVING
		HealthCheckResponse.NOT_SERVING HealthCheckResponse.SERVICE_UNKNOWN
		HealthListRequest HealthListResponse HealthListResponse.statuses
		HealthListResponse.StatusesEntry HealthListResponse.StatusesEntry.key
		HealthListResponse.StatusesEntry.value`)
	for i, name := range names {
		names[i] = healthPackage + "." + name
	}
	return names
}
