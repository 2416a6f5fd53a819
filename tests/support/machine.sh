#!/usr/bin/env bash
# Boots a Debian with systemd as its first process, in namespaces of its own but for the network.
#
#   machine.sh ROOT WORK CGROUP
#
# ROOT stays as it is: what the machine writes goes to WORK. The machine ends when this process is killed; its cgroup is
# CGROUP, to be removed then. Runs in the network namespace that it is started in.
set -euo pipefail
root=$1 work=$2 cgroup=$3

mkdir -p "$work/upper" "$work/work" "$work/root" "$cgroup"
echo $$ >"$cgroup/cgroup.procs"
export root work
# shellcheck disable=SC2016 # the variables are those of the inner shell
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child bash -euc '
    mount --make-rprivate /
    mount -t overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"
    cd "$work/root"
    mount -t proc proc proc
    # The kernel parameters are those of all machines here.
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    # These are of the network.
    mount --bind proc/sys/net/ipv6/conf proc/sys/net/ipv6/conf
    mount -o remount,bind,rw proc/sys/net/ipv6/conf
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs tmpfs tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    for device in null zero full random urandom tty; do
        touch "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    pivot_root . mnt
    umount -l /mnt
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal
'
