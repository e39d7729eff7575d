# What a person or a machine does with this repository. `make` alone lists it.
SHELL := /bin/bash
, := ,
TARGET := $(or $(CARGO_TARGET_DIR),target)
STEP := @scripts/step
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=QUICK$(,)ROWS$(,)PEERS$(,)RUNS$(,)IDLE$(,)NICE$(,)OUT$(,)POINTSMAN_BIN$(,)POINTSMAN_VIP_BIN)
# A failed test shows its causes, not the addresses of the test runner.
export RUST_LIB_BACKTRACE ?= 0

.PHONY: help demo test bench bench-vip scale instructions loom soak soak-vip lint deb servers

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: servers ## etcd, three PostgreSQL, three pointsman on loopback, to try it; Ctrl-C ends and removes all of it
	@echo "Building in release mode; the first time takes some minutes"
	$(STEP) "Building" cargo build --release --bins -p pointsman -p pointsman-tests
	@exec $(TARGET)/release/pointsman-demo

test: servers ## every test, on real servers; the last line counts them (RUNS=n: switchovers to measure)
	@scripts/run-tests

bench: servers ## Pointsman beside HAProxy, nginx, Envoy and others, as root (QUICK=1: under five minutes; ROWS=regex PEERS=regex RUNS=n SECONDS=s)
	$(STEP) "Peers" scripts/install-bench-peers
	$(STEP) "Building" cargo build --release --bins -p pointsman -p pointsman-bench
	@exec $(AS_ROOT) $(TARGET)/release/pointsman-bench $(if $(SECONDS),--seconds $(SECONDS))

bench-vip: servers ## pointsman-vip beside keepalived: how long a client is without the virtual address after each kind of fault, as root; half an hour (RUNS=n PEERS=text)
	$(STEP) "Building" cargo build --release -p pointsman-vip -p pointsman-tests --bin pointsman-vip --bin pointsman-vip-bench
	@exec $(TARGET)/release/pointsman-vip-bench

scale: servers ## how costs grow with sessions, members, listeners, a leader change under all of them, and how soon a change in the store cuts a session, as root (ROWS=regex RUNS=n)
	$(STEP) "Building" cargo build --release --bins -p pointsman -p pointsman-bench
	@exec $(AS_ROOT) $(TARGET)/release/pointsman-bench scale

instructions: servers ## instructions of the hot steps against those recorded (RECORD=1: records them anew)
	$(STEP) "Counting instructions" scripts/check-instructions $(if $(RECORD),--record)

loom: ## every order in which threads can meet in the relay engine; and Miri, where the toolchain has it
	$(STEP) "Loom" env RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$(TARGET)/loom cargo test --quiet -p pointsman-loom --release
	@cargo miri --version >/dev/null 2>&1 || echo "Miri: skipped, this toolchain has none (and it knows neither epoll with sockets nor io_uring)"

soak: ## an hour of random traffic through both backends, every byte checked (SOAK=seconds)
	@SOAK=$(or $(SOAK),3600) cargo test --quiet --release -p pointsman --lib -- --exact listener::tests::alone::soak::soak --nocapture

soak-vip: servers ## an hour of random faults on three pointsman-vip: whenever it is quiet, one holder (SOAK=seconds SEED=n)
	$(STEP) "Building" cargo build -p pointsman-vip
	@SOAK=$(or $(SOAK),3600) cargo test --quiet -p pointsman-tests --test vip_random -- --nocapture

lint: servers ## formatting, clippy, documentation, licences and bans
	$(STEP) "Formatting" cargo fmt --all --check
	$(STEP) "Clippy" cargo clippy --quiet --workspace --all-targets -- -D warnings
	$(STEP) "Documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items
	$(STEP) "Dependencies" scripts/check-dependencies

deb: ## not built yet
	@echo "make deb: the Debian package is not built yet." >&2; exit 1

servers:
	$(STEP) "Test servers" scripts/install-test-servers
