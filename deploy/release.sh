#!/usr/bin/env bash
# Puts a release together in target/dist-out, from the programs that `make dist-programs` has built for each architecture.
#
#   release.sh ARCH...
#   release.sh --check      only whether there may be a release: no file differs from the commit
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The modes of the files in the archives must not depend on who builds them.
umask 022

readonly final=target/dist-out
[[ $# -gt 0 ]] || { printf 'release.sh: no architecture\n' >&2 && exit 2; }
changed=$(git status --porcelain)
[[ -z $changed ]] ||
    { printf 'release.sh: a release is built of a commit, and these files differ from it:\n%s\n' "$changed" >&2 && exit 1; }
[[ $1 != --check ]] || exit 0
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
commit=${TWILL_COMMIT:-$(git rev-parse --short=12 HEAD)}
epoch=$(git log -1 --format=%ct)
PATH=$PWD/target/deploy-tools/bin:$PATH
export SOURCE_DATE_EPOCH=$epoch

work=$(mktemp -d)
# Beside its place, so that a release which fails leaves the one before it as it is.
out=$(mktemp -d -p target dist-out.XXXXXX)
chmod 755 "$out"
cleanup() {
    umount -q "$work/storage/overlay" 2>/dev/null || true
    rm -rf "$work" "$out"
}
trap cleanup EXIT

# cargo-cyclonedx writes beside each manifest of the workspace. The file has this machine's path in it; sed replaces it.
sbom() {
    cargo cyclonedx --quiet --format json --target all --override-filename sbom.cdx
    sed "s,$PWD,/twill,g" agent/sbom.cdx.json >"$1"
    rm -f ./*/sbom.cdx.json
}

# The same files give the same archive.
archive() {
    tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$1" | gzip -n -9
}

tarball() {
    local arch=$1 programs=$2
    local name=twill-$version-linux-$arch
    bash deploy/setup/static.sh "$programs"/{twilld,twill,flannel}
    mkdir -p "$work/$name"/{bin,doc,deploy}
    install -m 755 "$programs"/{twilld,twill,flannel} "$work/$name/bin/"
    # Under the names by which the documents call them.
    cp -r deploy/{README.md,MIGRATION.md,systemd,cni,etcd,kubernetes} "$work/$name/deploy/"
    install -m 644 README.md CHANGELOG.md LICENSE "$sbom" "$work/$name/doc/"
    archive "$name" >"$out/$name.tar.gz"
}

sbom=$out/twill-$version.cdx.json
sbom "$sbom"
for arch in "$@"; do
    case $arch in
        amd64) programs=target/x86_64-unknown-linux-gnu/dist ;;
        arm64) programs=target/aarch64-unknown-linux-gnu/dist ;;
        *) printf 'release.sh: no recipe for %s\n' "$arch" >&2 && exit 2 ;;
    esac
    tarball "$arch" "$programs"
    deploy/debian/build.sh --arch "$arch" --output "$out/twill_$version-1_$arch.deb"
    deploy/image/build.sh --programs "$programs" --tag "twill:$version" --arch "$arch" --commit "$commit" --sbom "$sbom" \
        --root "$work/storage" --archive "$out/twill-$version-image-$arch.tar"
done
target/deploy-tools/helm package deploy/helm/twill --destination "$out" >/dev/null
sums=$(cd "$out" && sha256sum -- *)
printf '%s\n' "$sums" >"$out/SHA256SUMS"
rm -rf "$final"
mv -T "$out" "$final"
ls -l "$final"
