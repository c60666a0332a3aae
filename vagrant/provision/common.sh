#!/bin/sh
# Wait until this machine has its addresses: common.sh ADDRESS...
set -eu

for address in "$@"; do
    tries=50
    until ip -o -4 address show to "$address" | grep -q .; do
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then
            echo "common.sh: no interface has the address $address" >&2
            exit 1
        fi
        sleep 0.2
    done
done
