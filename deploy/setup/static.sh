#!/usr/bin/env bash
# Fails unless each of these programs is there and static: an empty image has no loader, and another distribution has another
# glibc.
#
#   static.sh PROGRAM...
set -euo pipefail

[[ $# -gt 0 ]] || { printf 'static.sh: no program\n' >&2 && exit 2; }
for program in "$@"; do
    # Not by a pipe: a readelf that fails must not count as a program without a loader.
    headers=$(LC_ALL=C readelf --wide --program-headers "$program") ||
        { printf 'static.sh: cannot read %s\n' "$program" >&2 && exit 1; }
    [[ $headers == *LOAD* ]] || { printf 'static.sh: %s is no program\n' "$program" >&2 && exit 1; }
    if [[ $headers == *INTERP* ]]; then
        printf 'static.sh: %s is not static: build it by make dist-programs\n' "$program" >&2
        exit 1
    fi
done
