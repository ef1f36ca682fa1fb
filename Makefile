SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := build

GO      ?= $(or $(shell command -v go),/usr/local/go/bin/go)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# How much each fuzz target runs in `make fuzz` (a count: Go reports a run that a time ends as a failure now and then), and
# the end-to-end tests at most.
FUZZTIME    ?= 5000x
E2E_TIMEOUT ?= 30m
# A pattern of end-to-end tests to run instead of all: make e2e RUN=TestRedis
RUN ?= .

# Linters are built outside the tree, each version into a folder of its own, and stay out of go.mod.
TOOLS         ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nsmigrate/tools
GOFUMPT       := $(TOOLS)/gofumpt@v0.12.0/gofumpt
STATICCHECK   := $(TOOLS)/staticcheck@v0.8.2/staticcheck
GOLANGCI_LINT := $(TOOLS)/golangci-lint@v2.15.0/golangci-lint

# Built with the race detector, a program sleeps a second before it exits; the tests start thousands.
export GORACE := atexit_sleep_ms=0

# The end-to-end tests, and those of the hosts they build, need root: `make unit` leaves them to `make e2e`.
unit_packages = $$($(GO) list ./... | grep -Ev '/e2e(/|$$)')

# Flags of the benchmark: make bench BENCH='-run "routes|1 connection" -json result.json'
BENCH ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## build bin/nsmigrate, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/nsmigrate ./cmd/nsmigrate

.PHONY: criu
criu: ## provide CRIU >= 4.2: what is there, the distribution's, or Debian's in a private prefix
	@checkpoint/criu/install.sh

.PHONY: deps
deps: ## install the services and tools that the demo and the tests run
	@e2e/deps.sh

.PHONY: demo
demo: deps criu build ## move a live redis between two hosts made of namespaces (root)
	@PATH="$(CURDIR)/bin:$$PATH" $(GO) run ./e2e/demo

.PHONY: test
test: deps criu lint unit fuzz cross corpus e2e vm ## everything: install what is missing, lint, and run all tests (root)

.PHONY: lint
lint: $(GOFUMPT) $(STATICCHECK) $(GOLANGCI_LINT) ## formatting and static checks
	@unformatted=$$($(GOFUMPT) -l .); if [ -n "$$unformatted" ]; then \
		echo "not formatted, run gofumpt -w on:" $$unformatted; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(STATICCHECK) ./...
	$(GOLANGCI_LINT) run ./...

.PHONY: unit
unit: ## unit tests under the race detector (no root needed)
	CGO_ENABLED=1 $(GO) test -race $(unit_packages)

.PHONY: fuzz
fuzz: ## run every fuzz target FUZZTIME long
	@$(GO) test -list '^Fuzz' $(unit_packages) | \
	awk '/^Fuzz/ {target[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, target[i]; n = 0}' | \
	while read -r package target; do \
		echo "$$package $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzzminimizetime 10x -fuzztime $(FUZZTIME) "$$package" </dev/null; \
	done

# How many times `make soak` migrates a service.
MIGRATIONS ?= 200

# How many random namespaces `make soak` moves; "N-M" picks them.
SEEDS ?= 3000

.PHONY: soak
soak: export CI := true
soak: ## move SEEDS random namespaces and compare, and a service MIGRATIONS times (root)
	CGO_ENABLED=1 $(GO) test -c -race -o bin/e2e.test ./e2e
	cd e2e && NSMIGRATE_E2E_SOAK=$(MIGRATIONS) ../bin/e2e.test -test.v -test.timeout 4h -test.run '^TestMigrateSoak$$'
	NSMIGRATE_SEEDS=$(SEEDS) $(GO) test -count=1 -timeout 4h -run '^TestRandom$$' ./netstate

.PHONY: corpus
corpus: ## move the rulesets of nftables' and iptables' own tests and examples, as far as apt has their sources (root)
	NSMIGRATE_CORPUS=1 $(GO) test -count=1 -v -run '^TestCorpus' ./netstate/nftables

.PHONY: cross
cross: ## build for the other architecture
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build ./...

# CI=true: whoever asks for these tests wants a missing need to be a failure, not a skip.
.PHONY: e2e
e2e: export CI := true
e2e: ## end-to-end tests: hosts of namespaces, real services, real clients (root)
	CGO_ENABLED=1 $(GO) test -race -p 1 $$($(GO) list ./e2e/... | grep -Ev '/e2e(/vm)?$$')
	CGO_ENABLED=1 $(GO) test -c -race -o bin/e2e.test ./e2e
	cd e2e && ../bin/e2e.test -test.timeout $(E2E_TIMEOUT) -test.parallel 8 -test.run '$(RUN)'

.PHONY: vm
vm: export CI := true
vm: ## what only other kernels have, and a move between two of them, in virtual machines (root, 8 minutes)
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 30m ./e2e/vm

.PHONY: bench
bench: deps criu build ## how long clients wait when a service moves, and how fast namespaces are built, beside other tools (root)
	@PATH="$(CURDIR)/bin:$$PATH" $(GO) run ./e2e/bench $(BENCH)

.PHONY: bench-quick
bench-quick: BENCH += -quick
bench-quick: bench ## the same in less than three minutes, with more noise

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

$(GOFUMPT):
	GOBIN=$(@D) $(GO) install mvdan.cc/$(notdir $(@D))

$(STATICCHECK):
	GOBIN=$(@D) $(GO) install honnef.co/go/tools/cmd/$(notdir $(@D))

$(GOLANGCI_LINT):
	GOBIN=$(@D) $(GO) install github.com/golangci/golangci-lint/v2/cmd/$(notdir $(@D))
