#!/usr/bin/env bash
# Builds the Debian package from the programs that `make dist-programs` has built.
#
#   build.sh --output FILE [--arch amd64|arm64] [--revision N] [--compression best|fast]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

output='' arch=amd64 revision=1 compression=best
while [[ $# -gt 0 ]]; do
    case $1 in
        --output) output=${2:?} ;;
        --arch) arch=${2:?} ;;
        --revision) revision=${2:?} ;;
        --compression) compression=${2:?} ;;
        *) printf 'build.sh: unknown argument %s\n' "$1" >&2 && exit 2 ;;
    esac
    shift 2
done
[[ -n $output ]] || { printf 'build.sh: --output is needed\n' >&2 && exit 2; }
case $arch in
    amd64) target=x86_64-unknown-linux-gnu ;;
    arm64) target=aarch64-unknown-linux-gnu ;;
    *) printf 'build.sh: no recipe for %s\n' "$arch" >&2 && exit 2 ;;
esac
fast=()
[[ $compression != fast ]] || fast=(--fast)
PATH=$PWD/target/deploy-tools/bin:$PATH
bash deploy/setup/static.sh "target/$target/dist"/{twilld,twill,flannel}

# The programs are stripped already. The times of the files are those of the commit, so that two builds are the same.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH
cargo deb --quiet --no-build --no-strip --locked --profile dist --target "$target" --package twill-agent \
    --deb-revision "$revision" "${fast[@]}" --output "$output" >/dev/null
