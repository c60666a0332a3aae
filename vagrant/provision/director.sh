#!/bin/sh
# Provision a director: director.sh PART OUTSIDE INSIDE SYNC
#
# PART is "network" (what a network namespace can hold as well), "services", or "all".
# The others are this machine's addresses. The pair file is written to $LVSHA_PAIR,
# /etc/lvsha/pair.toml by default.
set -eu

part=$1
outside=$2
inside=$3
sync=$4
here=$(cd "$(dirname "$0")" && pwd)
repository=${LVSHA_REPOSITORY:-/lvsha}
[ -d "$repository/deploy" ] || repository=$(cd "$here/../.." && pwd)
pair=${LVSHA_PAIR:-/etc/lvsha/pair.toml}

device_of() {
    device=$(ip -o -4 address show to "$1" | awk '{ print $2; exit }')
    if [ -z "$device" ]; then
        echo "director.sh: no interface has the address $1" >&2
        exit 1
    fi
    echo "$device"
}

network() {
    # A namespace does not have every setting of the file; a machine does.
    sysctl -q -e -p "$repository/deploy/sysctl.d-lvsha.conf"
    outside_device=$(device_of "$outside")
    inside_device=$(device_of "$inside")
    sync_device=$(device_of "$sync")
    mkdir -p "$(dirname "$pair")"
    sed -e "s/\"eth1\"/\"$outside_device\"/; s/\"eth2\"/\"$inside_device\"/" \
        -e "s/\"eth3\"/\"$sync_device\"/" "$repository/vagrant/pair.toml" >"$pair"
}

services() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3 python3-venv nftables iproute2
    python3 -m venv /opt/lvsha
    /opt/lvsha/bin/pip install --quiet --upgrade "$repository"
    ln -sf /opt/lvsha/bin/lvsha /usr/local/bin/lvsha
    install -m 0644 "$repository/deploy/sysctl.d-lvsha.conf" /etc/sysctl.d/60-lvsha.conf
    install -m 0644 "$repository/deploy/lvsha.service" /etc/systemd/system/lvsha.service
    lvsha check "$pair"
    systemctl daemon-reload
    systemctl enable --quiet lvsha
    systemctl restart lvsha
}

case $part in
network) network ;;
services) services ;;
all) network && services ;;
*) echo "director.sh: expected network, services or all" >&2 && exit 2 ;;
esac
