"""Listings, byte for byte; a dot at the end of an expected line stands for a blank."""

from dataclasses import replace

import pytest

from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.ipvsadm import listing, procfiles
from lvsha.ipvsadm.names import NoNames, RecordedNames
from lvsha.ipvsadm.requests import Format
from lvsha.ipvsadm.saving import save_lines
from lvsha.ipvsadm.views import (
    Amounts,
    AppView,
    ConnectionView,
    DaemonView,
    ServerView,
    ServiceView,
)
from lvsha.model import ForwardMethod, Protocol, parse_address
from lvsha.sync.ipvs.roster import Role

NAT, DR, TUN = ForwardMethod.NAT, ForwardMethod.DIRECT_ROUTE, ForwardMethod.TUNNEL
NUMBERS = Amounts(123_456, 99_999_999, 100_000_000, 2_345_678_901, 123_456_789_012)
PER_SECOND = Amounts(12, 340, 290, 45_678, 1_234_567)
NAMES = RecordedNames(
    "198.51.100.10 www.example.test\n192.168.1.1 a-very-long-real-server-name.example.test\n"
    "2001:db8::10 www6.example.test",
    ["http 80/tcp", "domain 53/udp"],
)


def server(address: str, port: int = 80, method: ForwardMethod = NAT) -> ServerView:
    return ServerView(parse_address(address), port, method)


WEB = ServiceView(
    4,
    Protocol.TCP,
    parse_address("198.51.100.10"),
    80,
    "wlc",
    persistence=300,
    netmask=bytes.fromhex("ffffff00"),
    counted=NUMBERS,
    rates=PER_SECOND,
    servers=(
        replace(
            server("192.168.1.1"),
            active=3,
            inactive=7,
            upper=100,
            lower=75,
            persistent=2,
            counted=NUMBERS,
            rates=PER_SECOND,
        ),
        replace(server("192.168.1.2"), weight=2, inactive=12),
    ),
)
DNS = ServiceView(
    6,
    Protocol.UDP,
    parse_address("2001:db8::10"),
    53,
    "rr",
    one_packet=True,
    servers=(replace(server("2001:db8:1::53", 53, DR), inactive=4),),
)
MARK = ServiceView(
    4,
    Protocol.TCP,
    b"",
    0,
    "sh",
    mark=5,
    flags=frozenset({"sh-port", "sh-fallback"}),
    servers=(replace(server("10.9.0.1", 0, TUN), weight=10, active=1),),
)


def shown(
    service: ServiceView, form: Format = Format.CONNECTIONS, *, exact: bool = False
) -> list[str]:
    lines = listing.service_lines(service, form, NoNames(), exact=exact)
    return [dotted(line) for line in lines]


def dotted(line: str) -> str:
    bare = line.rstrip(" ")
    return bare + "." * (len(line) - len(bare))


def test_services_and_servers() -> None:
    assert listing.version_line() == "IP Virtual Server version 1.2.1 (size=4096)"
    assert [line for service in (WEB, DNS, MARK) for line in shown(service)] == [
        "TCP  198.51.100.10:80 wlc persistent 300 mask 255.255.255.0",
        "  -> 192.168.1.1:80               Masq    1      3          7.........",
        "  -> 192.168.1.2:80               Masq    2      0          12........",
        "UDP  [2001:db8::10]:53 rr ops",
        "  -> [2001:db8:1::53]:53          Route   1      0          4.........",
        "FWM  5 sh (sh-fallback,sh-port)",
        "  -> 10.9.0.1:0                   Tunnel  10     1          0.........",
    ]


def test_statistics_are_scaled_down_with_letters() -> None:
    assert shown(WEB, Format.STATISTICS)[:2] == [
        "TCP  198.51.100.10:80               123456 99999999  100000K    2345M     123G",
        "  -> 192.168.1.1:80                 123456 99999999  100000K    2345M     123G",
    ]


def test_exact_statistics_widen_their_columns() -> None:
    line = shown(WEB, Format.STATISTICS, exact=True)[1]
    assert line[33:] == "   123456 99999999 100000000 2345678901 123456789012"


@pytest.mark.parametrize(
    ("value", "short", "exact"),
    [
        (0, "        0", "        0"),
        (99_999_999, " 99999999", " 99999999"),
        (100_000_000, "  100000K", " 100000000"),
        (999_999_999, "  999999K", " 999999999"),
        (1_000_000_000, "    1000M", " 1000000000"),
        (99_999_999_999, "   99999M", " 99999999999"),
        (100_000_000_000, "     100G", " 100000000000"),
        (99_999_999_999_999, "   99999G", " 99999999999999"),
        (100_000_000_000_000, "     100T", " 100000000000000"),
    ],
)
def test_a_number_of_nine_places(value: int, short: str, exact: str) -> None:
    assert listing.number(value, exact=False) == short
    assert listing.number(value, exact=True) == exact


def test_rates() -> None:
    assert shown(WEB, Format.RATES)[:2] == [
        "TCP  198.51.100.10:80                   12      340      290    45678  1234567",
        "  -> 192.168.1.1:80                     12      340      290    45678  1234567",
    ]


def test_thresholds_persistent_connections_and_tunnels() -> None:
    assert shown(WEB, Format.THRESHOLDS)[1] == (
        "  -> 192.168.1.1:80               100        75         3          7........."
    )
    assert shown(WEB, Format.PERSISTENT)[1] == (
        "  -> 192.168.1.1:80               1         2           3          7........."
    )
    assert shown(WEB, Format.TUNNELS)[1] == (
        "  -> 192.168.1.1:80               Masq    n/a           1      3          7........."
    )
    gue = Tunnel(TunnelType.GUE, 6080, TunnelChecksum.CHECKSUM)
    tunnelled = replace(MARK, servers=(replace(MARK.servers[0], tunnel=gue, port=80),))
    assert shown(tunnelled, Format.TUNNELS)[1] == (
        "  -> 10.9.0.1:80                  Tunnel  gue:6080:+c   10     1          0........."
    )


@pytest.mark.parametrize("form", list(Format))
def test_titles_stand_above_their_columns(form: Format) -> None:
    title = "".join(listing.titles(form))
    for word in {
        Format.CONNECTIONS: ("Forward", "InActConn"),
        Format.STATISTICS: ("Conns   InPkts  OutPkts  InBytes OutBytes",),
        Format.RATES: ("CPS    InPPS   OutPPS    InBPS   OutBPS",),
        Format.THRESHOLDS: ("Uthreshold Lthreshold ActiveConn InActConn ",),
        Format.PERSISTENT: ("Weight    PersistConn ActiveConn InActConn ",),
        Format.TUNNELS: ("Forward TunnelInfo    Weight",),
    }[form]:
        assert word in title


def test_all_options_of_a_service() -> None:
    service = replace(
        WEB, persistence=60, netmask=b"", engine="sip", one_packet=True, protocol=Protocol.UDP
    )
    assert shown(service)[0] == "UDP  198.51.100.10:80 wlc persistent 60 pe sip ops"
    six = replace(DNS, persistence=60, netmask=b"\xff" * 8 + bytes(8), one_packet=False)
    assert shown(six)[0] == "UDP  [2001:db8::10]:53 rr persistent 60 mask 64"
    assert shown(replace(MARK, mark=2**32 - 1, family=6))[0] == (
        "FWM  -1 IPv6 sh (sh-fallback,sh-port)"
    )


def test_names_stand_for_addresses_and_ports_and_long_ones_are_cut() -> None:
    lines = [dotted(line) for line in listing.service_lines(WEB, Format.CONNECTIONS, NAMES)]
    assert lines[0] == "TCP  www.example.test:http wlc persistent 300 mask 255.255.255.0"
    assert lines[1] == "  -> a-very-long-real-server-name Masq    1      3          7........."
    assert lines[2] == "  -> 192.168.1.2:http             Masq    2      0          12........"
    assert next(listing.service_lines(DNS, Format.STATISTICS, NAMES)).startswith(
        "UDP  [www6.example.test]:domain          0"
    )


def test_order_is_by_mark_family_protocol_address_and_port() -> None:
    later = replace(WEB, port=443)
    assert listing.in_order([MARK, DNS, later, WEB], listing.service_words) == [
        WEB,
        later,
        DNS,
        MARK,
    ]


def test_what_lies_half_the_address_space_apart_stands_the_other_way_round() -> None:
    low, high = server("10.1.0.2"), server("fd00:5::2")
    assert listing.in_order([low, high], listing.server_words) == [high, low]
    near = server("10.1.0.10")
    assert listing.in_order([near, low], listing.server_words) == [low, near]
    assert listing.in_order([], listing.server_words) == []


# Connections, time-outs, daemons

ESTABLISHED = ConnectionView(
    protocol=Protocol.TCP,
    client=parse_address("203.0.113.7"),
    client_port=40_000,
    virtual=parse_address("198.51.100.10"),
    virtual_port=80,
    server=parse_address("192.168.1.1"),
    server_port=8080,
    state="ESTABLISHED",
    remaining=899,
)
TEMPLATE = replace(ESTABLISHED, client_port=0, state="NONE", remaining=6000)
CALL = replace(
    TEMPLATE,
    protocol=Protocol.UDP,
    remaining=119,
    engine="sip",
    found=b"call-2@example.test",
)
OF_MARK = replace(
    TEMPLATE, protocol=0, virtual=parse_address("0.0.0.5"), virtual_port=0, server_port=0
)
SIX = replace(
    ESTABLISHED,
    client=parse_address("2001:db8:1::5"),
    virtual=parse_address("2001:db8::10"),
    server=parse_address("fd00:5::3"),
    state="SYN_RECV",
    remaining=57,
)


def test_connections() -> None:
    lines = [
        listing.connection_line(connection, NoNames(), engine_data=False)
        for connection in (ESTABLISHED, TEMPLATE, CALL, OF_MARK, SIX)
    ]
    assert lines == [
        "TCP 14:59  ESTABLISHED 203.0.113.7:40000  198.51.100.10:80   192.168.1.1:8080",
        "TCP 100:00 NONE        203.0.113.7:0      198.51.100.10:80   192.168.1.1:8080",
        "UDP 01:59  NONE        203.0.113.7:0      198.51.100.10:80   192.168.1.1:8080",
        "IP  100:00 NONE        203.0.113.7:0      0.0.0.5:0          192.168.1.1:0",
        "TCP 00:57  SYN_RECV    [2001:db8:1::5]:40000 [2001:db8::10]:80  [fd00:5::3]:8080",
    ]
    assert listing.connection_titles(engine_data=False)[1] == (
        "pro expire state       source             virtual            destination"
    )


def test_connections_with_what_a_persistence_engine_found() -> None:
    assert listing.connection_titles(engine_data=True)[1].endswith(
        "destination        pe name          pe_data"
    )
    assert listing.connection_line(CALL, NoNames(), engine_data=True) == (
        "UDP 01:59  NONE        203.0.113.7:0      198.51.100.10:80   192.168.1.1:8080 "
        "sip                call-2@example.test"
    )
    strange = replace(CALL, found=b"a\x00\xff")
    assert listing.connection_line(strange, NoNames(), engine_data=True).endswith(r"\xff")


def test_connections_with_names_are_not_cut() -> None:
    assert listing.connection_line(ESTABLISHED, NAMES, engine_data=False) == (
        "TCP 14:59  ESTABLISHED 203.0.113.7:40000  www.example.test:http "
        "a-very-long-real-server-name.example.test:8080"
    )


def test_timeouts_and_daemons() -> None:
    assert listing.timeouts_line(900.0, 120, 300) == "Timeout (tcp tcpfin udp): 900 120 300"
    daemon = DaemonView(Role.MASTER, "eth0", 21, 1472, parse_address("224.0.0.81"), 8848, 1)
    assert listing.daemon_line(daemon) == (
        "master sync daemon (mcast=eth0, syncid=21, maxlen=1472, group=224.0.0.81, "
        "port=8848, ttl=1)"
    )
    assert listing.daemon_line(DaemonView(Role.BACKUP, "eth0", 0)) == (
        "backup sync daemon (mcast=eth0, syncid=0)"
    )


# Saving


def test_what_is_saved_can_be_restored() -> None:
    lines = [line for service in (WEB, DNS, MARK) for line in save_lines(service, NoNames())]
    assert lines == [
        "-A -t 198.51.100.10:80 -s wlc -p 300 -M 255.255.255.0",
        "-a -t 198.51.100.10:80 -r 192.168.1.1:80 -m -w 1",
        "-a -t 198.51.100.10:80 -r 192.168.1.2:80 -m -w 2",
        "-A -u [2001:db8::10]:53 -s rr -o",
        "-a -u [2001:db8::10]:53 -r [2001:db8:1::53]:53 -g -w 1",
        "-A -f 5 -s sh -b sh-fallback,sh-port",
        "-a -f 5 -r 10.9.0.1:0 -i -w 10 --tun-type ipip",
    ]


@pytest.mark.parametrize(
    ("tunnel", "words"),
    [
        (Tunnel(TunnelType.GUE, 6080), "--tun-type gue --tun-port 6080 --tun-nocsum"),
        (
            Tunnel(TunnelType.GUE, 6080, TunnelChecksum.REMOTE),
            "--tun-type gue --tun-port 6080 --tun-remcsum",
        ),
        (Tunnel(TunnelType.GRE, 0, TunnelChecksum.CHECKSUM), "--tun-type gre --tun-csum"),
    ],
)
def test_tunnels_are_saved_with_what_their_type_has(tunnel: Tunnel, words: str) -> None:
    service = replace(MARK, family=6, servers=(replace(MARK.servers[0], tunnel=tunnel),))
    assert list(save_lines(service, NoNames()))[1] == f"-a -f 5 -6 -r 10.9.0.1:0 -i -w 10 {words}"


def test_an_engine_is_saved() -> None:
    service = replace(WEB, engine="sip", netmask=b"", protocol=Protocol.SCTP)
    assert next(save_lines(service, NAMES)) == (
        "-A --sctp-service www.example.test:80 -s wlc -p 300 --pe sip"
    )


# The files of /proc/net


def test_the_file_of_services() -> None:
    six = replace(DNS, persistence=120, netmask=b"\xff" * 8 + bytes(8))
    six_server = "[2001:0db8:0001:0000:0000:0000:0000:0053]:0035"
    lines = [
        dotted(line)
        for line in procfiles.services_file(
            (WEB, replace(WEB, persistence=0, one_packet=True, servers=()), DNS, six, MARK)
        )
    ]
    assert lines == [
        "IP Virtual Server version 1.2.1 (size=4096)",
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
        "TCP  C633640A:0050 wlc  persistent 30000 FFFFFF00",
        "  -> C0A80101:0050      Masq    1      3          7.........",
        "  -> C0A80102:0050      Masq    2      0          12........",
        "TCP  C633640A:0050 wlc ops..",
        "UDP  [2001:0db8:0000:0000:0000:0000:0000:0010]:0035 rr.",
        f"  -> {six_server}      Route   1      0          4.........",
        "UDP  [2001:0db8:0000:0000:0000:0000:0000:0010]:0035 rr persistent 12000 40000000",
        f"  -> {six_server}      Route   1      0          4.........",
        "FWM  00000005 sh.",
        "  -> 0A090001:0000      Tunnel  10     1          0.........",
    ]


def test_the_files_of_connections() -> None:
    assert list(procfiles.connections_file((ESTABLISHED, CALL)))[1:] == [
        "TCP CB007107 9C40 C633640A 0050 C0A80101 1F90 ESTABLISHED     899",
        "UDP CB007107 0000 C633640A 0050 C0A80101 1F90 NONE            119 sip call-2@example.test",
    ]
    assert list(procfiles.origins_file((ESTABLISHED, replace(SIX, synced=True))))[1:] == [
        "TCP CB007107 9C40 C633640A 0050 C0A80101 1F90 ESTABLISHED LOCAL      899",
        (
            "TCP 2001:0db8:0001:0000:0000:0000:0000:0005 9C40 "
            "2001:0db8:0000:0000:0000:0000:0000:0010 0050 "
            "fd00:0005:0000:0000:0000:0000:0000:0003 1F90 SYN_RECV    SYNC        57"
        ),
    ]


def test_the_files_of_statistics() -> None:
    counted, rates = Amounts(1, 0x15F90, 0, 0x7A90F40, 0), Amounts(0, 0x2BF2, 0, 0xF521E8, 0)
    assert list(procfiles.statistics_file(counted, rates)) == [
        "   Total Incoming Outgoing         Incoming         Outgoing",
        "   Conns  Packets  Packets            Bytes            Bytes",
        "       1    15F90        0          7A90F40                0",
        "",
        " Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s",
        "       0     2BF2        0           F521E8                0",
    ]
    assert list(procfiles.processors_file(counted, rates))[2:] == [
        "  0        1    15F90        0          7A90F40                0",
        "  ~        1    15F90        0          7A90F40                0",
        "",
        "     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s",
        "           0     2BF2        0           F521E8                0",
    ]


def test_the_file_of_applications() -> None:
    assert list(procfiles.applications_file([AppView(Protocol.TCP, 21, 3, "ftp")])) == [
        "prot port    usecnt name",
        "TCP  21      3      ftp              ",
    ]
