# What people type. Each target does its own set-up on a fresh Debian 12 or 13; `make help` lists them.

# rustup puts cargo where a login shell looks for it, and make does not.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

NODES ?= 3
KEEP ?= 0

.PHONY: help setup etcd-3.5 deploy-tools root build lint test demo bench bench-agent clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22
	@echo
	@echo '  make demo NODES=5   more nodes'
	@echo '  make demo KEEP=1    stays up until Ctrl-C and says how to look around'

setup: ## install what is missing (called by the others)
	@bash deploy/setup/debian.sh

# What the tests need besides: they run on the distribution's etcd and on this one.
etcd-3.5: setup
	@bash deploy/setup/etcd-3.5.sh

# What the tests of deploy/ and `make dist` need besides.
deploy-tools: setup
	@bash deploy/setup/deploy.sh

build: setup ## build twilld, twill and flannel (target/debug)
	cargo build --workspace --bins

lint: setup ## formatting, and clippy with warnings as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# The whole-program tests start the programs that `build` leaves in target/debug.
test: root lint build etcd-3.5 deploy-tools ## all tests: lint, unit, and whole programs in network namespaces (root)
	cargo test --workspace

demo: root setup ## a running network in one command, shown and removed again (root)
	@cargo build --workspace --bins
	@NODES=$(NODES) KEEP=$(KEEP) cargo run --quiet --package twill-lab --bin demo

# Built as what is shipped is (the profile `dist`), the daemon and the bench. A target that is missed is printed and fails nothing.
bench: root setup ## what netlink-ext and the miss path cost, beside the least that it can cost here (root)
	@cargo build --profile dist --package twill-agent --bins
	@cargo bench --profile dist --quiet --package twill-benches --bench netlink -- $(BENCH)
	@cargo bench --profile dist --quiet --package twill-benches --bench overlay

bench-agent: root setup ## the whole program at 10,000 and 100,000 peers, beside iproute2 (root)
	@cargo build --profile dist --package twill-agent --bins
	@cargo bench --profile dist --quiet --package twill-benches --bench agent -- $(BENCH)

clean: ## remove what was built
	cargo clean

root:
	@[ "$$(id -u)" -eq 0 ] || { echo 'network namespaces need root: run as root' >&2; exit 1; }
