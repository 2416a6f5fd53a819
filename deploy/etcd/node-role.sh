#!/usr/bin/env bash
# Makes the etcd role that a node of one network needs, and nothing more, and the user that nodes log in as.
#
#   node-role.sh [--prefix /coreos.com/network] [--role twill-node] [--user NAME [--certificate]]
#
# etcdctl takes endpoints, CA, certificate or password from its own variables (ETCDCTL_ENDPOINTS, ETCDCTL_CACERT,
# ETCDCTL_CERT, ETCDCTL_KEY, ETCDCTL_USER). The user's password is read from standard input; with --certificate it gets
# none and is whoever shows a client certificate with NAME as its common name. May be run again: what is there stays.
set -euo pipefail
export ETCDCTL_API=3

prefix=/coreos.com/network role=twill-node user='' certificate=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --prefix) prefix=${2:?--prefix needs a key} && shift 2 ;;
        --role) role=${2:?--role needs a name} && shift 2 ;;
        --user) user=${2:?--user needs a name} && shift 2 ;;
        --certificate) certificate=1 && shift ;;
        *) printf 'node-role.sh: unknown argument %s\n' "$1" >&2 && exit 2 ;;
    esac
done
# As twilld reads --etcd-prefix: one slash before, none behind; nothing at all for the top.
prefix=/$(sed -E 's,/+,/,g; s,^/,,; s,/$,,' <<<"$prefix")
prefix=${prefix%/}

has() {
    local all
    # Not by a pipe: grep ends at the first hit, and a list that can't be written to its end counts as failed.
    all=$(etcdctl "$1" list) || exit 1
    grep -Fqx -- "$2" <<<"$all"
}

# Granting what is granted already changes nothing.
has role "$role" || etcdctl role add "$role"
etcdctl role grant-permission "$role" read "$prefix/config"
etcdctl role grant-permission "$role" readwrite --prefix=true "$prefix/subnets/"

[[ -n $user ]] || exit 0
if ! has user "$user"; then
    if [[ $certificate -eq 1 ]]; then
        etcdctl user add "$user" --no-password
    else
        etcdctl user add "$user" --interactive=false
    fi
fi
etcdctl user grant-role "$user" "$role"
