# make run     builds bin/envd and bin/envdctl and serves
# make test    installs what the tests need and runs all with the race detector
# make check   vet, linters, format, generated code, go.mod files, import arrows
# make bench   measures the daemon against floors of the same run
# make soak    freezes, saves and restores a busy machine, CYCLES times
# make fuzz    runs each fuzz target for FUZZTIME
# make build   static binaries for linux on amd64 and arm64, below bin/
# make generate, make format   rewrite gen/ and the sources

# More arguments for the daemon, as in make run ARGS='--port 8080', for the
# benchmarks (-quick, -only NAME), or for go test (-run NAME).
ARGS =
FUZZTIME = 10s
CYCLES = 200

TOOL = go tool -modfile=$(CURDIR)/tools/go.mod
# This module and those of tests, which need what the daemon shall not.
MODULES = . $(patsubst %/go.mod,%,$(wildcard test/*/go.mod))
# $(call each,COMMAND) runs COMMAND in every module, also after it failed in one.
each = @code=0; for m in $(MODULES); do echo "$$m: $(1)"; (cd $$m && $(1)) || code=1; done; exit $$code

# safe.directory, because a clone may belong to another user than root.
COMMIT = $(shell git --no-optional-locks -c safe.directory='*' describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)
# Nothing in a binary depends on where, when or by whom it was built.
GOBUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w -X main.commit=$(COMMIT)'

.PHONY: run
run: native
	exec bin/envd --isnotfc $(ARGS)

.PHONY: native
native:
	$(GOBUILD) -o bin/ ./cmd/...

.PHONY: build build-amd64 build-arm64
build: build-amd64 build-arm64
build-amd64 build-arm64: build-%:
	GOOS=linux GOARCH=$* $(GOBUILD) -o bin/linux-$*/ ./cmd/...

.PHONY: test
test:
	scripts/test $(ARGS)

.PHONY: check vet lint format-check generated tidy arrows
check: vet lint format-check generated tidy arrows
vet:
	$(call each,go vet ./...)
lint:
	$(call each,$(TOOL) golangci-lint run --config=$(CURDIR)/.golangci.yml ./...)
format-check:
	@echo gofumpt; out=$$($(TOOL) gofumpt -l .) && test -z "$$out" || { echo "run make format:"; echo "$$out"; exit 1; }
generated:
	scripts/check-generated
# Not tools: its go.sum lacks nothing but what only tests of tools import.
tidy:
	$(call each,go mod tidy -diff)
arrows:
	go test -count=1 ./internal

.PHONY: generate format
generate:
	cd proto && $(TOOL) buf generate
format:
	$(TOOL) gofumpt -w .

.PHONY: bench
bench:
	go run ./test/bench $(ARGS)

.PHONY: soak
soak:
	scripts/install-test-deps
	cd test/vm && go test -count=1 -timeout=0 -v -run='^TestSoak$$' . -args -cycles=$(CYCLES)

.PHONY: fuzz
fuzz:
	scripts/fuzz $(FUZZTIME)
