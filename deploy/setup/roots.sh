#!/usr/bin/env bash
# Puts a Debian 12 and a Debian 13 with systemd into target/deploy-tools/roots, for the tests of the Debian package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly roots=target/deploy-tools/roots
log=$(mktemp)
trap 'rm -f "$log"' EXIT

for release in bookworm trixie; do
    [[ ! -e $roots/$release/usr/lib/systemd/systemd ]] || continue
    printf 'setup: making a root of Debian %s\n' "$release"
    mkdir -p "$roots"
    rm -rf "$roots/$release.new"
    if ! debootstrap --variant=minbase --include=systemd-sysv "$release" "$roots/$release.new" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        printf 'setup: no root of Debian %s\n' "$release" >&2
        exit 1
    fi
    rm -rf "$roots/$release.new"/var/cache/apt/archives/*.deb "${roots:?}/$release"
    mv "$roots/$release.new" "$roots/$release"
done
