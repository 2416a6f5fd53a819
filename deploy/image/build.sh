#!/usr/bin/env bash
# Builds the image from programs that are built already (static: there is nothing else in it), and needs no Docker daemon.
#
#   build.sh --programs DIR --tag IMAGE [--arch amd64|arm64] [--commit ID] [--sbom FILE] [--archive FILE] [--root DIR]
#
# The same programs give the same digest, which is printed. --archive also writes the image as an OCI archive, --root keeps
# buildah's storage there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

programs='' tag='' arch=amd64 commit=unknown sbom='' archive='' storage=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --programs) programs=${2:?} ;;
        --tag) tag=${2:?} ;;
        --arch) arch=${2:?} ;;
        --commit) commit=${2:?} ;;
        --sbom) sbom=${2:?} ;;
        --archive) archive=${2:?} ;;
        --root) storage=(--root "${2:?}" --runroot "$2/run" --storage-driver overlay) ;;
        *) printf 'build.sh: unknown argument %s\n' "$1" >&2 && exit 2 ;;
    esac
    shift 2
done
[[ -n $programs && -n $tag ]] || { printf 'build.sh: --programs and --tag are needed\n' >&2 && exit 2; }
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

bash deploy/setup/static.sh "$programs"/{twilld,flannel}

# What is copied, with owner, mode and time of its own: the image must not depend on who builds it.
stage=$(mktemp -d)
container=''
cleanup() {
    rm -rf "$stage"
    [[ -z $container ]] || buildah "${storage[@]}" rm "$container" >/dev/null
}
trap cleanup EXIT
install -d -m 755 "$stage/usr/bin" "$stage/usr/share/doc/twill"
install -m 755 "$programs"/{twilld,flannel} "$stage/usr/bin/"
# twilld is the operator's command as well, by that name: two programs would hold most of their code twice.
ln -s twilld "$stage/usr/bin/twill"
install -m 644 LICENSE "$stage/usr/share/doc/twill/LICENSE"
[[ -z $sbom ]] || install -m 644 "$sbom" "$stage/usr/share/doc/twill/sbom.cdx.json"
chmod 755 "$stage"

container=$(buildah "${storage[@]}" from --arch "$arch" scratch)
buildah "${storage[@]}" copy --quiet "$container" "$stage" / >/dev/null
buildah "${storage[@]}" config --arch "$arch" --os linux --env PATH=/usr/bin --cmd twilld \
    --label org.opencontainers.image.title=twill \
    --label org.opencontainers.image.description='A flannel-compatible VXLAN overlay agent' \
    --label org.opencontainers.image.licenses=Apache-2.0 \
    --label org.opencontainers.image.version="$version" \
    --label org.opencontainers.image.revision="$commit" \
    "$container"
# The times of the image and of its files.
buildah "${storage[@]}" commit --quiet --format oci --timestamp 0 "$container" "$tag" >/dev/null
buildah "${storage[@]}" inspect --type image --format '{{.FromImageDigest}}{{"\n"}}' "$tag"
[[ -z $archive ]] || buildah "${storage[@]}" push --quiet "$tag" "oci-archive:$archive:$tag"
