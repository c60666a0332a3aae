#!/bin/sh
# pid 1 of the guest whose kernel is the director. Its root is the host's file tree, mounted
# read-only; the only place it can write to is /run. What it answers goes to the serial line.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs none /run
mkdir -p /run/requests /run/tree/lib
mount -t hostfs none /run/requests -o "$REQUESTS"
# `modprobe -d /run/tree` finds the guest's modules here, whatever the host has in /lib.
ln -s /usr/lib/uml/modules /run/tree/lib/modules
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C PYTHONDONTWRITEBYTECODE=1
stty -F /dev/ttyS0 raw -echo
exec "$PYTHON" -S -E /run/requests/guest_agent.py </dev/ttyS0 >/dev/ttyS0 2>/dev/console
