#!/usr/bin/env bash
# Makes the etcd role that a node of one network needs, and nothing more, and the user that nodes log in as.
#
#   node-role.sh [--prefix /coreos.com/network] [--role twill-node] [--user NAME [--certificate]]
#
# etcdctl takes endpoints, CA, certificate or password from its own variables (ETCDCTL_ENDPOINTS, ETCDCTL_CACERT,
# ETCDCTL_CERT, ETCDCTL_KEY, ETCDCTL_USER). The user's password is read from standard input; with --certificate it gets
# none and is whoever shows a client certificate with NAME as its common name. May be run again: what is there stays. A role
# that may do more than a node needs is an error, and stays as it is.
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

# Every call but the one that reads the password: standard input is for that one alone.
ctl() {
    etcdctl "$@" </dev/null
}

has() {
    local all
    # Not by a pipe: grep ends at the first hit, and a list that can't be written to its end counts as failed.
    all=$(ctl "$1" list) || exit 1
    grep -Fqx -- "$2" <<<"$all"
}

# What the role may read and write besides, a line for each.
more() {
    local all
    all=$(ctl role get "$role") || exit 1
    subnets="[$prefix/subnets/, $prefix/subnets0) (prefix $prefix/subnets/)" config="$prefix/config" awk '
        /^KV / { verb = tolower($2); sub(/:$/, "", verb); next }
        verb == "" { next }
        { sub(/^[ \t]+/, "") }
        $0 == "" || $0 == ENVIRON["subnets"] || (verb == "read" && $0 == ENVIRON["config"]) { next }
        { print "  " verb " " $0 }
    ' <<<"$all"
}

if has role "$role"; then
    besides=$(more)
    if [[ -n $besides ]]; then
        printf 'node-role.sh: the role %s may do more than a node needs:\n%s\n' "$role" "$besides" >&2
        printf 'node-role.sh: take that away by etcdctl role revoke-permission, or give another name by --role\n' >&2
        exit 1
    fi
else
    ctl role add "$role"
fi
# Granting what is granted already changes nothing.
ctl role grant-permission "$role" read "$prefix/config"
ctl role grant-permission "$role" readwrite --prefix=true "$prefix/subnets/"

[[ -n $user ]] || exit 0
if ! has user "$user"; then
    if [[ $certificate -eq 1 ]]; then
        ctl user add "$user" --no-password
    else
        etcdctl user add "$user" --interactive=false
    fi
fi
ctl user grant-role "$user" "$role"
