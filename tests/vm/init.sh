#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Process 1 of the test VM, in its initramfs: busybox and the few modules that 9p needs.
# It makes the host's file tree the root (read-only below an overlay in memory), runs
# /run/o2c/results/command.sh in it, and resets the machine, which ends QEMU (-no-reboot).
# The host reads `output`, `kmsg`, `status` and whatever the command left in the results directory.

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

for module in $(cat /modules/order); do
	insmod "/modules/$module" || echo "o2c-init: insmod $module failed"
done

options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$options,ro,cache=loose" host /host || echo "o2c-init: no host tree"
mount -t tmpfs -o size=75% tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root ||
	echo "o2c-init: no overlay"

root=/root
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t devtmpfs devtmpfs $root/dev
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts devpts $root/dev/pts
mount -t tmpfs tmpfs $root/dev/shm
mount -t tmpfs tmpfs $root/run
mount -t debugfs debugfs $root/sys/kernel/debug
mount -t tracefs tracefs $root/sys/kernel/tracing
mount -t bpf bpf $root/sys/fs/bpf
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mkdir -p $root/run/o2c/results $root/run/o2c/tmp $root/run/lock
mount -t 9p -o "$options,cache=none" results $root/run/o2c/results || echo "o2c-init: no results"

# Debian's kernels keep no modules in the image: the booted release's come from the cache directory.
release=$(uname -r)
modules=$(cat $root/run/o2c/results/modules-dir)
mkdir -p "$root/lib/modules/$release"
mount --bind "$root$modules" "$root/lib/modules/$release"

ip link set lo up
hostname o2c-vm
cp /bin/busybox $root/run/o2c/busybox
cp /run-command $root/run/o2c/run-command
umount /proc /sys 2>/dev/null
exec switch_root $root /run/o2c/busybox sh /run/o2c/run-command
