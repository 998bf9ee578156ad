# What a maintainer runs. Everything that must hold before a change lands is in .ci/run.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export CGO_ENABLED ?= 0

# Linters are run at these versions, from the module cache; nothing is installed.
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BENCHSTAT := golang.org/x/perf/cmd/benchstat@latest

.PHONY: help build test race generate golden lint bench benchstat fuzz ci

help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## the program, as ./phaseconv
	go build -trimpath -o phaseconv ./cmd/phaseconv

test: ## go test ./... in random order
	go test -shuffle=on ./...

race: ## the race detector on packages that start goroutines; needs a C compiler
	scripts/ci/race.sh

generate: ## assembly, Unicode classes, spec vectors; git diff shows what changed
	kernels/internal/asm/regen.sh
	go generate ./...
	go run ./rotations/internal/vectors -o spec/vectors
	git status --short

# Packages with golden files of our own output find -update in their tests. Golden files of
# oracles (llama.cpp, transformers, gguf-py) are made by the scripts that their folders name.
golden: ## golden files of our own output anew (fits, report page, card): look at the difference
	@for p in $$(grep -rl --include='*_test.go' 'flag.Bool("update"' . | xargs -n1 dirname | sort -u); do \
		echo "go test $$p -update"; go test "$$p" -count=1 -update; done
	git status --short

lint: ## gofmt, go vet, go mod tidy -diff, golangci-lint
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	go vet ./...
	go mod tidy -diff
	go run $(GOLANGCI) run ./...

bench: ## benchmarks as docs/bench/NAME.txt (NAME=baseline COUNT=6), for benchstat; the machine must be idle
	scripts/bench/bench.sh $(or $(NAME),new) $(or $(COUNT),6)

benchstat: ## compares docs/bench/OLD.txt with docs/bench/NEW.txt (OLD=baseline NEW=new)
	go run $(BENCHSTAT) docs/bench/$(or $(OLD),baseline).txt docs/bench/$(or $(NEW),new).txt

fuzz: ## every fuzz target of the readers for TIME (30s) each
	scripts/ci/fuzz.sh $(or $(TIME),30s)

ci: ## everything
	.ci/run
