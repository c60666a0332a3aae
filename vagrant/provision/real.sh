#!/bin/sh
# Provision a real server: real.sh PART INSIDE
#
# PART is "network" (what a network namespace can hold as well), "services", or "all".
# INSIDE is this machine's address. Port 8001 is reached by NAT, port 8002 by direct routing.
set -eu

part=$1
inside=$2
here=$(cd "$(dirname "$0")" && pwd)
repository=${LVSHA_REPOSITORY:-/lvsha}
[ -d "$repository/deploy" ] || repository=$(cd "$here/../.." && pwd)

virtual=192.0.2.10
gateway=10.1.0.254
clients=192.0.2.0/24
client_inside=10.1.0.100
table=51

network() {
    device=$(ip -o -4 address show to "$inside" | awk '{ print $2; exit }')
    if [ -z "$device" ]; then
        echo "real.sh: no interface has the address $inside" >&2
        exit 1
    fi
    # First the settings, then the address: it must never be answered for.
    sysctl -q -p "$repository/deploy/sysctl.d-real-server.conf"
    ip address replace "$virtual/32" dev lo

    # NAT: back to the clients by the director that holds the gateway's address.
    ip route replace "$clients" via "$gateway" dev "$device"
    # Direct routing: what is sent from the virtual address goes to the client by itself.
    ip route replace "$clients" via "$client_inside" dev "$device" table "$table"
    ip rule show | grep -q "from $virtual lookup $table" ||
        ip rule add from "$virtual" lookup "$table"
}

services() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3 iproute2
    install -m 0644 "$repository/deploy/sysctl.d-real-server.conf" \
        /etc/sysctl.d/60-lvsha-real-server.conf
    mkdir -p /srv/real
    hostname >/srv/real/index.html
    cat >/etc/systemd/system/real-network.service <<UNIT
[Unit]
Description=Addresses and routes of a real server
After=network-online.target
Wants=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$repository/vagrant/provision/common.sh $inside
ExecStart=$repository/vagrant/provision/real.sh network $inside
[Install]
WantedBy=multi-user.target
UNIT
    cat >/etc/systemd/system/real@.service <<UNIT
[Unit]
Description=Web server on port %i
After=real-network.service
[Service]
DynamicUser=yes
ExecStart=/usr/bin/python3 -m http.server %i --directory /srv/real
[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload
    systemctl enable --quiet real-network real@8001 real@8002
    systemctl restart real-network real@8001 real@8002
}

case $part in
network) network ;;
services) services ;;
all) network && services ;;
*) echo "real.sh: expected network, services or all" >&2 && exit 2 ;;
esac
