"""What ``ipvsadm --help`` and ``ipvsadm --version`` print; the words are lvsha's own."""

from typing import Final

import lvsha

VERSION: Final = f"ipvsadm v1.31 (as of lvsha {lvsha.__version__}, for IPVS v1.2.1)\n"
"""Scripts look for the first two words and for the number of the tool's version."""

HELP: Final = f"""{VERSION}
Usage: ipvsadm COMMAND [OPTION...]

Commands, of which one comes first:
  -A, --add-service SERVICE         add a virtual service
        [-s SCHEDULER] [-b FLAGS] [-p [SECONDS]] [-M NETMASK] [--pe ENGINE] [-o]
  -E, --edit-service SERVICE        change it; what is not given becomes the default
  -D, --delete-service SERVICE      remove it and its servers
  -C, --clear                       remove everything
  -R, --restore                     read commands from standard input
  -S, --save [-n]                   print commands that --restore understands
  -a, --add-server SERVICE -r SERVER
        [-g|-i|-m] [-w WEIGHT] [-x UPPER] [-y LOWER] [--tun-type TYPE] [--tun-port PORT]
        [--tun-nocsum|--tun-csum|--tun-remcsum]
  -e, --edit-server SERVICE -r SERVER       change it, as above
  -d, --delete-server SERVICE -r SERVER     remove it
  -L, -l, --list [SERVICE]          show services
        [-n] [--stats|--rate|--thresholds|--persistent-conn|--tun-info] [--exact] [--nosort]
  -L -c [-n] [--persistent-conn]    show connections
  -L --timeout                      show time-outs
  -L --daemon                       show sync daemons
  -Z, --zero [SERVICE]              let counters begin at zero
  --set TCP TCPFIN UDP              set time-outs in seconds; 0 leaves one as it is
  --start-daemon master|backup      start a sync daemon
        [--mcast-interface NAME] [--syncid N] [--sync-maxlen BYTES] [--mcast-group ADDRESS]
        [--mcast-port PORT] [--mcast-ttl TTL]
  --stop-daemon master|backup       stop it
  -h, --help                        show this
  -v, --version                     show the version

SERVICE is one of
  -t, --tcp-service HOST[:PORT]     -u, --udp-service HOST[:PORT]
  --sctp-service HOST[:PORT]        -f, --fwmark-service MARK [-6]
SERVER is -r HOST[:PORT]; an IPv6 address with a port stands in brackets.

  -s, --scheduler      rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos; default wlc
  -b, --sched-flags    with commas: sh-fallback sh-port mh-fallback mh-port flag-1 to flag-3
  -p, --persistent     keep a client's server for so long; default 360 seconds
  -M, --netmask        which part of a client's address counts: a mask, or a prefix length
  --pe                 persistence engine: sip
  -o, --ops            schedule each datagram by itself
  -g, --gatewaying     direct routing (default)
  -i, --ipip           a tunnel; --tun-type ipip (default), gue or gre
  -m, --masquerading   NAT
  -w, --weight         0 takes no new connections; default 1
  -x, --u-threshold    connections at which a server takes no more
  -y, --l-threshold    connections below which it takes them again
  -n, --numeric        no names in listings
  -X, --exact          no K, M, G, T in numbers
  --sort               nothing; listings are sorted unless --nosort is given
"""
