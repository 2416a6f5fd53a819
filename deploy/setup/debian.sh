#!/usr/bin/env bash
# Installs what building and testing Twill needs on Debian 12 and 13, and nothing that is there already.
#
# Looks for programs, not packages: an etcd or a protoc from elsewhere serves as well. Debian's etcd-server may start
# a service of its own on 127.0.0.1; nothing here uses it, the tests and the demo start theirs in a namespace.
set -euo pipefail

# The Rust release that Cargo.toml's rust-version asks for.
readonly rust_minor=88

# rustup puts cargo where a login shell looks for it, and a script does not.
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

# needs FILE-OR-PROGRAM PACKAGE: notes the package if the thing is not there.
missing=()
needs() {
    if [[ $1 == /* ]]; then
        [[ -e $1 ]] || missing+=("$2")
    else
        command -v "$1" >/dev/null || missing+=("$2")
    fi
}

install_packages() {
    [[ $(id -u) -eq 0 ]] || fail "to install $*: run as root"
    command -v apt-get >/dev/null || fail "no apt-get here; install what Debian calls: $*"
    printf 'setup: installing %s\n' "$*"
    local log
    log=$(mktemp)
    # Quiet unless it fails: hundreds of lines that say nothing.
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
        >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        fail "installing $* failed"
    fi
    rm -f "$log"
}

packages() {
    needs cc build-essential
    needs make build-essential
    needs protoc protobuf-compiler
    # protoc without the files that every .proto imports
    needs /usr/include/google/protobuf/descriptor.proto libprotobuf-dev
    needs /etc/ssl/certs/ca-certificates.crt ca-certificates
    needs etcd etcd-server
    needs etcdctl etcd-client
    needs ip iproute2
    needs bridge iproute2
    needs ss iproute2
    needs openssl openssl
    needs ping iputils-ping
    needs strace strace
    needs /usr/lib/cni/bridge containernetworking-plugins
    needs podman podman
    needs runc runc
    needs /bin/busybox busybox-static
    needs nm binutils
    needs nft nftables
    needs iptables iptables
    needs iptables-legacy-restore iptables
    if [[ ${#missing[@]} -gt 0 ]]; then
        mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
        install_packages "${missing[@]}"
    fi
}

has_rustup_package() {
    [[ -n $(apt-cache search --names-only '^rustup$' 2>/dev/null) ]]
}

# Debian has rustup since 13; 12's own cargo is too old.
install_rust() {
    if ! command -v rustup >/dev/null; then
        # A fresh machine has no lists yet.
        has_rustup_package || apt-get update >/dev/null 2>&1 </dev/null || true
        has_rustup_package ||
            fail "no cargo, and no rustup package in this Debian: install Rust 1.$rust_minor or newer"
        install_packages rustup
    fi
    printf 'setup: installing the stable Rust toolchain\n'
    rustup default stable </dev/null
}

rust() {
    command -v cargo >/dev/null || install_rust
    local version minor
    version=$(cargo --version) || fail "cargo does not run; with rustup: rustup default stable"
    minor=$(sed -nE 's/^cargo 1\.([0-9]+)\..*/\1/p' <<<"$version")
    [[ -n $minor && $minor -ge $rust_minor ]] ||
        fail "$version is too old: Twill needs 1.$rust_minor; with rustup: rustup update stable"
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        fail "cargo has no fmt or clippy; with rustup: rustup component add rustfmt clippy"
    fi
}

packages
rust
