#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Second half of process 1 (see init.sh), with the host's tree as root.

results=/run/o2c/results
bb=/run/o2c/busybox

# Written through at once: after a panic the host has every line but those of the panic itself,
# which are in the serial console's log.
$bb cat /dev/kmsg >$results/kmsg &
$bb cut -d' ' -f1 /proc/uptime >$results/booted
$bb setsid /bin/sh $results/command.sh </dev/null >$results/output 2>&1
status=$?
echo "o2c-init: command ended with status $status" >/dev/kmsg
tries=0
until $bb grep -q 'o2c-init: command ended' $results/kmsg || [ $tries -ge 20 ]; do
	tries=$((tries + 1))
	$bb usleep 50000
done
echo $status >$results/status
$bb sync
$bb reboot -f
