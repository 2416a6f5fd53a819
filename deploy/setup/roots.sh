#!/usr/bin/env bash
# Puts a Debian 12 and a Debian 13 with systemd into target/deploy-tools/roots, for the tests of the Debian package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly roots=target/deploy-tools/roots
log=$(mktemp)
work=''
trap 'rm -rf "$log" ${work:+"$work"}' EXIT

for release in bookworm trixie; do
    [[ ! -e $roots/$release/usr/lib/systemd/systemd ]] || continue
    printf 'setup: making a root of Debian %s\n' "$release"
    mkdir -p "$roots"
    # Runs side by side must never see half a root: each has a folder of its own beside its place.
    work=$(mktemp -d -p "$roots")
    if ! debootstrap --force-check-gpg --variant=minbase --include=systemd-sysv "$release" "$work/$release" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        printf 'setup: no root of Debian %s\n' "$release" >&2
        exit 1
    fi
    rm -f "$work/$release"/var/cache/apt/archives/*.deb
    # Another run may have put it there meanwhile, and its tests may use it: then that one stays.
    [[ -e $roots/$release/usr/lib/systemd/systemd ]] || rm -rf "${roots:?}/$release"
    mv -T "$work/$release" "$roots/$release" 2>/dev/null || [[ -e $roots/$release/usr/lib/systemd/systemd ]]
    rm -rf "$work"
done
