#!/usr/bin/env bash
# Installs what `make dist` needs besides: what builds for arm64, if that is among the architectures, and cargo-cyclonedx, which
# makes the SBOM.
#
#   release.sh ARCH...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

for_arm64() {
    if ! command -v aarch64-linux-gnu-gcc >/dev/null || [[ ! -e /usr/aarch64-linux-gnu/lib/libc.a ]]; then
        printf 'setup: installing gcc-aarch64-linux-gnu\n'
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
            gcc-aarch64-linux-gnu libc6-dev-arm64-cross; } >/dev/null </dev/null ||
            fail 'gcc-aarch64-linux-gnu could not be installed'
    fi
    if [[ ! -d $(rustc --print sysroot)/lib/rustlib/aarch64-unknown-linux-gnu/lib ]]; then
        printf 'setup: installing the standard library of Rust for arm64\n'
        rustup target add aarch64-unknown-linux-gnu </dev/null ||
            fail 'no standard library for arm64: make dist ARCHS=amd64 does without'
    fi
}

for arch; do
    [[ $arch != arm64 ]] || for_arm64
done
readonly cyclonedx=0.5.9
# By the version that cargo has noted: another one in its place is replaced.
if ! grep -qs "^\"cargo-cyclonedx $cyclonedx " target/deploy-tools/.crates.toml; then
    printf 'setup: building cargo-cyclonedx %s\n' "$cyclonedx"
    cargo install --quiet --locked --force --root target/deploy-tools "cargo-cyclonedx@$cyclonedx" || fail 'cargo-cyclonedx could not be built'
fi
