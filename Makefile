# What people type. Each target does its own set-up on a fresh Debian 12 or 13; `make help` lists them.

# rustup puts cargo where a login shell looks for it, and make does not.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

NODES ?= 3
KEEP ?= 0

# What is shipped: static programs, so that they run on every distribution and in an empty image. Paths of the machine that
# builds are kept out, so that two machines build the same. The flags go to the target's code only, not to build scripts.
ARCH ?= $(if $(filter aarch64,$(shell uname -m)),arm64,amd64)
ARCHS ?= amd64 arm64
RUST_TARGET_amd64 := x86_64-unknown-linux-gnu
RUST_TARGET_arm64 := aarch64-unknown-linux-gnu
RUST_TARGET := $(RUST_TARGET_$(ARCH))
CARGO_DIR := $(or $(CARGO_HOME),$(HOME)/.cargo)
STATIC := -C target-feature=+crt-static --remap-path-prefix=$(CURDIR)=/twill --remap-path-prefix=$(CARGO_DIR)=/cargo
PROGRAMS := target/$(RUST_TARGET)/dist
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

.PHONY: help setup etcd-3.5 deploy-tools deploy-roots root build dist-programs image deb dist lint test demo bench bench-agent clean

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

dist-programs: export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS := $(STATIC)
dist-programs: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS := $(STATIC)
dist-programs: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER := aarch64-linux-gnu-gcc
dist-programs: export TWILL_COMMIT ?= $(shell git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null)
dist-programs: setup ## build the static programs that are shipped (ARCH=amd64 or arm64)
	@# These two would take the place of the flags above.
	env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS \
		cargo build --locked --profile dist --target $(RUST_TARGET) --package twill-agent --bins

# Images are kept where podman and buildah look for them; `make dist` writes archives.
image: root deploy-tools dist-programs ## build the image twill:<version> (ARCH=amd64 or arm64), without a Docker daemon
	@bash deploy/image/build.sh --programs $(PROGRAMS) --tag twill:$(VERSION) --arch $(ARCH)

deb: deploy-tools dist-programs ## build the Debian package, into target/dist-out
	@mkdir -p target/dist-out
	@bash deploy/debian/build.sh --arch $(ARCH) --output target/dist-out/twill_$(VERSION)-1_$(ARCH).deb

dist: root deploy-tools ## a release: tarballs, images, packages, chart, SBOM, checksums, in target/dist-out (ARCHS=amd64 leaves arm64 out)
	@bash deploy/release.sh --check
	@bash deploy/setup/release.sh $(ARCHS)
	@for arch in $(ARCHS); do $(MAKE) --no-print-directory dist-programs ARCH=$$arch || exit 1; done
	@bash deploy/release.sh $(ARCHS)

# The Debians in which the tests install the package.
deploy-roots: root deploy-tools
	@bash deploy/setup/roots.sh

lint: setup ## formatting, and clippy with warnings as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# The whole-program tests start the programs that `build` leaves in target/debug.
test: root lint build etcd-3.5 deploy-roots dist-programs ## all tests: lint, unit, and whole programs in network namespaces (root)
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
