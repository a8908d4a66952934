#!/bin/sh
# Regenerates internal/transport/peerpb from peer.proto. Needs protoc (Debian: protobuf-compiler) and the Go toolchain; the
# two plugins are built at the versions below into a temporary directory, so the result does not depend on what is installed.
set -eu
cd "$(dirname "$0")"

PROTOC_GEN_GO=v1.36.12
PROTOC_GEN_GO_GRPC=v1.6.2

bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install "google.golang.org/protobuf/cmd/protoc-gen-go@$PROTOC_GEN_GO"
GOBIN=$bin go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$PROTOC_GEN_GO_GRPC"
PATH="$bin:$PATH" protoc --proto_path=peerpb \
	--go_out=peerpb --go_opt=paths=source_relative \
	--go-grpc_out=peerpb --go-grpc_opt=paths=source_relative \
	peer.proto
