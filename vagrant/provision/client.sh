#!/bin/sh
# Provision the client: client.sh PART OUTSIDE INSIDE
#
# PART is "network" (what a network namespace can hold as well), "services", or "all".
# OUTSIDE and INSIDE are this machine's addresses.
set -eu

part=$1

network() {
    # The virtual address is on the client's own network, so there is nothing to route. With
    # direct routing, answers to what left by the outside come in by the inside; a strict
    # reverse path filter (1) would drop them.
    sysctl -q -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2
}

services() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends curl iproute2
    cat >/etc/sysctl.d/60-lvsha-client.conf <<SETTINGS
net.ipv4.conf.all.rp_filter = 2
net.ipv4.conf.default.rp_filter = 2
SETTINGS
}

case $part in
network) network ;;
services) services ;;
all) network && services ;;
*) echo "client.sh: expected network, services or all" >&2 && exit 2 ;;
esac
