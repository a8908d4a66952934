# Chronik. `make` alone lists the targets.
GO ?= go
STATICCHECK_VERSION = v0.8.2
PROTOC_GEN_GO_VERSION = v1.36.12
CYCLES ?= 10
FROM ?= 1
SEEDS ?= 200
CUTS ?= 10000
MINUTES ?= 30
FUZZTIME ?= 5s
SEED ?= 1
RECORDS ?= 1000000
LINES ?= 100000

.PHONY: help build test vet staticcheck fmt-check race fuzz sim sim-otherprocessor sim-otherprocessor-prepare soak powercuts cluster chaos coordinators idle proto dump-segments clients clients-prepare conformance bench bench-groups mutants

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build: ## static binaries in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o bin/ ./cmd/...

test: ## what README says
	$(GO) test ./...

vet: ## go vet
	$(GO) vet ./...

staticcheck: ## staticcheck, installed by its module name
	@test -x "$$($(GO) env GOPATH)/bin/staticcheck" && "$$($(GO) env GOPATH)/bin/staticcheck" -version | grep -q '($(STATICCHECK_VERSION:v%=%))' \
	  || $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
	"$$($(GO) env GOPATH)/bin/staticcheck" ./...

fmt-check: ## fails if gofmt would change a file
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }

race: ## the race detector on the packages with goroutines
	$(GO) test -race -timeout 15m ./internal/... .

fuzz: ## every fuzz target for FUZZTIME, two at a time
	GO="$(GO)" FUZZTIME=$(FUZZTIME) sh test/fuzz.sh

sim: ## clusters in one thread, SEEDS of them from FROM on
	$(GO) run ./cmd/chronik sim --from $(FROM) --seeds $(SEEDS)

sim-otherprocessor: ## the same seeds on amd64 and arm64 (QEMU): the same traces
	GO="$(GO)" sh test/sim/otherprocessor.sh

sim-otherprocessor-prepare: ## install and build what that needs, and no more
	GO="$(GO)" sh test/sim/otherprocessor.sh -prepare

soak: ## the same for MINUTES, each time from other seeds
	$(GO) run ./cmd/chronik sim --from $$(date +%s)000 --seeds 1000000000 --minutes $(MINUTES)

powercuts: ## the power of whole clusters fails CUTS times, from seed FROM on: nothing acknowledged may be lost
	$(GO) run ./cmd/chronik sim --power --cuts $(CUTS) --from $(FROM)

chaos: ## real processes, links, clients and disks broken for MINUTES; SEED repeats a schedule
	CHRONIK_CHAOS_MINUTES=$(MINUTES) CHRONIK_CHAOS_SEED=$(SEED) $(GO) test ./test/chaos -count=1 -v -timeout 0

cluster: ## real processes, leaders killed -9 CYCLES times under load
	CHRONIK_CLUSTER_CYCLES=$(CYCLES) $(GO) test ./test/cluster -count=1 -v -timeout 60m

coordinators: ## a consumer group's coordinators killed -9 20 times while it consumes RECORDS
	CHRONIK_GROUP_RECORDS=$(RECORDS) $(GO) test ./test/cluster -run TestGroupMissesNothing -count=1 -v -timeout 60m

idle: ## three real servers with 1,000 partitions and nothing to do for MINUTES: no elections, and what it costs
	CHRONIK_IDLE_MINUTES=$(MINUTES) $(GO) test ./test/cluster -run TestIdleClusterElectsNobody -count=1 -v -timeout 0

proto: ## regenerate protobuf code (needs protoc)
	$(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
	PATH="$$($(GO) env GOPATH)/bin:$$PATH" $(GO) generate ./internal/transport/... ./internal/controller/...

dump-segments: ## Kafka's own DumpLogSegments reads our segments (needs Java and Maven)
	bash test/dumplogsegments/run.sh

clients: ## real clients of many languages against a cluster, LINES records each; ONLY=name,name runs some
	$(GO) run ./test/clients -lines $(LINES) $(if $(ONLY),-only $(ONLY),$(if $(CI),,-docs docs/compatibility.md))

clients-prepare: ## install what clients needs, and no more
	$(GO) run ./test/clients -prepare

conformance: ## Kafka's answers recorded anew, ours compared with them (needs Java and Maven)
	bash test/conformance/run.sh

bench: ## throughput, latency, memory, fail-over of a local three-node cluster
	$(GO) run ./bench $(BENCH)

bench-groups: ## rebalances, commits, fail-over of groups beside Apache Kafka's, ROUNDS times (needs Java and Maven)
	bash bench/peer.sh $(ROUNDS)

mutants: ## planted bugs, each of which a test must catch; ONLY=id,id plants those, SAMPLE=1 a few
	$(GO) run ./test/mutants/run $(if $(ONLY),-only $(ONLY)) $(if $(SAMPLE),-sample)
