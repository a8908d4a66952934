// Package controllerpb holds the generated protobuf types of the metadata log. They are internal to the controller.
package controllerpb

// Needs protoc and protoc-gen-go v1.36.12 in the path:
// go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//
//go:generate protoc --go_out=. --go_opt=paths=source_relative controller.proto
