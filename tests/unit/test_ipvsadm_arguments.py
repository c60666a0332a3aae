"""The words of ipvsadm: what they mean, and what is refused with which text and status."""

import shlex

import pytest

from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.ipvsadm.arguments import parse
from lvsha.ipvsadm.names import NoNames, RecordedNames
from lvsha.ipvsadm.options import UsageError
from lvsha.ipvsadm.requests import (
    AddServer,
    AddService,
    Command,
    DeleteServer,
    DeleteService,
    EditServer,
    EditService,
    Flush,
    Format,
    ListConnections,
    ListDaemons,
    ListServices,
    ListTimeouts,
    Restore,
    Save,
    SetTimeouts,
    ShowHelp,
    ShowVersion,
    StartDaemon,
    StopDaemon,
    Zero,
)
from lvsha.model import ForwardMethod, Protocol, parse_address
from lvsha.sync.ipvs.roster import Role

NAMES = RecordedNames(
    "192.0.2.10 www.example.test www\n2001:db8::10 www.example.test\n# a comment\nnonsense here\n",
    ["http\t80/tcp\twww # the web", "domain 53/tcp", "domain 53/udp", "odd", "x y/tcp", "z 1/zzz"],
)
NAT, DR, TUN = ForwardMethod.NAT, ForwardMethod.DIRECT_ROUTE, ForwardMethod.TUNNEL
TCP4 = ServiceIdentity(4, Protocol.TCP, parse_address("192.0.2.10"), 80)
TCP6 = ServiceIdentity(6, Protocol.TCP, parse_address("2001:db8::10"), 80)
MARK = ServiceIdentity(4, Protocol.TCP, mark=5)
SERVER4, SERVER6 = parse_address("10.1.0.2"), parse_address("fd00:5::2")


def understood(line: str) -> Command:
    return parse(shlex.split(line), NAMES)


def refused(line: str) -> tuple[int, str]:
    with pytest.raises(UsageError) as caught:
        parse(shlex.split(line), NAMES)
    return caught.value.status, str(caught.value)


# What is understood


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("", ListServices()),
        ("-A -t 192.0.2.10:80", AddService(TCP4, ServiceOptions())),
        (
            "--add-service --tcp-service=192.0.2.10:80 --scheduler rr",
            AddService(TCP4, ServiceOptions("rr")),
        ),
        ("-At192.0.2.10:80 -srr", AddService(TCP4, ServiceOptions("rr"))),
        ("-A -t 192.0.2.10:http", AddService(TCP4, ServiceOptions())),
        ("-A -t www.example.test:80", AddService(TCP4, ServiceOptions())),
        ("-A -t [2001:db8::10]:80", AddService(TCP6, ServiceOptions())),
        ("-A -t [www.example.test]:http", AddService(TCP6, ServiceOptions())),
        ("-A -f 5", AddService(MARK, ServiceOptions())),
        ("-A -f 5 -6", AddService(ServiceIdentity(6, 6, mark=5), ServiceOptions())),
        (
            "-A -f 4294967295 -o",
            AddService(ServiceIdentity(4, 6, mark=2**32 - 1), ServiceOptions(one_packet=True)),
        ),
        (
            "-A -t 192.0.2.10 -p",
            AddService(ServiceIdentity(4, 6, TCP4.address), ServiceOptions(persistence=360)),
        ),
        (
            "-A -t 2001:db8::10 -p 60",
            AddService(ServiceIdentity(6, 6, TCP6.address), ServiceOptions(persistence=60)),
        ),
        (
            "-A -t 192.0.2.10:80 -p60 -M 255.255.255.0",
            AddService(TCP4, ServiceOptions(persistence=60, netmask=bytes.fromhex("ffffff00"))),
        ),
        (
            "-A -t 192.0.2.10:80 -p=60 -M 255.255.255.255",
            AddService(TCP4, ServiceOptions(persistence=60)),
        ),
        (
            "-A -M 64 -t [2001:db8::10]:80 -p 60",
            AddService(TCP6, ServiceOptions(persistence=60, netmask=b"\xff" * 8 + bytes(8))),
        ),
        ("-A -t [2001:db8::10]:80 -p 60 -M 128", AddService(TCP6, ServiceOptions(persistence=60))),
        (
            "-A -t 192.0.2.10:80 -b sh-port,sh-fallback -s sh",
            AddService(TCP4, ServiceOptions("sh", frozenset({"sh-port", "sh-fallback"}))),
        ),
        (
            "-A -t 192.0.2.10:80 -s mh -b flag-1,flag-2,,flag-3",
            AddService(TCP4, ServiceOptions("mh", frozenset({"mh-fallback", "mh-port", "flag-3"}))),
        ),
        (
            "-A -t 192.0.2.10:80 -s rr -b flag-2",
            AddService(TCP4, ServiceOptions("rr", frozenset({"flag-2"}))),
        ),
        (
            "-A -u 192.0.2.10:53 --pe sip -p 5 -o",
            AddService(
                ServiceIdentity(4, 17, TCP4.address, 53),
                ServiceOptions(persistence=5, one_packet=True, engine="sip"),
            ),
        ),
        (
            "-A --sctp-service 192.0.2.10:5 --sort --sort",
            AddService(ServiceIdentity(4, 132, TCP4.address, 5), ServiceOptions()),
        ),
        ("-E -t 192.0.2.10:80 -s lc", EditService(TCP4, ServiceOptions("lc"))),
        ("-D -t 192.0.2.10:80", DeleteService(TCP4)),
        ("-C", Flush()),
        ("-R", Restore()),
        ("-S", Save(numeric=False)),
        ("-Sn", Save(numeric=True)),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2", AddServer(TCP4, SERVER4, 80, ServerOptions())),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2:8080 -g", AddServer(TCP4, SERVER4, 80, ServerOptions())),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2:8080 -mw5",
            AddServer(TCP4, SERVER4, 8080, ServerOptions(NAT, 5)),
        ),
        ("-a -r 10.1.0.2 -t 192.0.2.10:80 -m", AddServer(TCP4, SERVER4, 80, ServerOptions(NAT))),
        ("-a -f 5 -r 10.1.0.2", AddServer(MARK, SERVER4, 0, ServerOptions())),
        ("-a -f 5 -r 10.1.0.2:7 -g", AddServer(MARK, SERVER4, 7, ServerOptions())),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -w 2147483647 -x 9 -y 3",
            AddServer(TCP4, SERVER4, 80, ServerOptions(DR, 2**31 - 1, 9, 3)),
        ),
        (
            "-a -t 192.0.2.10:80 -r [fd00:5::2]:1 -i",
            AddServer(TCP4, SERVER6, 80, ServerOptions(TUN)),
        ),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-type gue --tun-port 6080 --tun-remcsum",
            AddServer(
                TCP4,
                SERVER4,
                80,
                ServerOptions(TUN, tunnel=Tunnel(TunnelType.GUE, 6080, TunnelChecksum.REMOTE)),
            ),
        ),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 --tun-csum --tun-type gre -i",
            AddServer(
                TCP4,
                SERVER4,
                80,
                ServerOptions(TUN, tunnel=Tunnel(TunnelType.GRE, 0, TunnelChecksum.CHECKSUM)),
            ),
        ),
        (
            "-e -t 192.0.2.10:80 -r 10.1.0.2:80 -w 0",
            EditServer(TCP4, SERVER4, 80, ServerOptions(DR, 0)),
        ),
        ("-d -t 192.0.2.10:80 -r 10.1.0.2:8080", DeleteServer(TCP4, SERVER4, 8080)),
        ("-d -t 192.0.2.10:80 -r fd00:5::2", DeleteServer(TCP4, SERVER6, 80)),
        ("-Ln", ListServices(numeric=True)),
        ("-l", ListServices()),
        ("--list -t 192.0.2.10:80 --stats --rate", ListServices(Format.STATISTICS, TCP4)),
        ("-L --tun-info --persistent-conn -X", ListServices(Format.PERSISTENT, exact=True)),
        ("-L --tun-info --nosort --sort", ListServices(Format.TUNNELS, sorted=False)),
        ("-L --rate", ListServices(Format.RATES)),
        ("-L --thresholds --syncid 3", ListServices(Format.THRESHOLDS)),
        ("-Lnc", ListConnections(numeric=True)),
        ("-L -c --persistent-conn --exact", ListConnections(engine_data=True)),
        ("-L --timeout -n", ListTimeouts()),
        ("-Ln --daemon", ListDaemons()),
        ("-Z", Zero(None)),
        ("-Z -f 5", Zero(MARK)),
        ("--set 1 0 2678400", SetTimeouts(1, 0, 2_678_400)),
        ("--set -- +1 007 ' 3'", SetTimeouts(1, 7, 3)),
        ("--start-daemon master", StartDaemon(Role.MASTER)),
        (
            (
                "--start-daemon=backup --mcast-interface vec2 --syncid 255 --sync-maxlen 65507 "
                "--mcast-group ff02::99 --mcast-port 9 --mcast-ttl 255"
            ),
            StartDaemon(Role.BACKUP, "vec2", 255, 65_507, parse_address("ff02::99"), 9, 255),
        ),
        ("--stop-daemon master --syncid 4", StopDaemon(Role.MASTER, 4)),
        ("-h anything --at=all", ShowHelp()),
        ("--version", ShowVersion()),
    ],
)
def test_a_command_line_is_understood(line: str, command: Command) -> None:
    assert understood(line) == command


# What is refused


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        # What cannot be taken apart.
        ("-Q", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("-n -L", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("foo", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("-", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("--start-daemon", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        (
            "--add-serv -t 192.0.2.10:80",
            255,
            "Try `ipvsadm -h' or 'ipvsadm --help' for more information.",
        ),
        ("--set -1 0 0", 255, "-1: unknown option"),
        ("-L --foo", 255, "--foo: unknown option"),
        ("-A-t 192.0.2.10:80", 255, "-A-t: unknown option"),
        ("-A -t", 255, "-t: missing argument"),
        ("-A -t 192.0.2.10:80 -p -5", 255, "-5: unknown option"),
        ("-Ln=5", 255, "-Ln=5: option does not take an argument"),
        ("-A -u 192.0.2.10:80 --ops=1", 255, "--ops=1: option does not take an argument"),
        # Twice, stray, illegal, missing.
        ("-L -L", 2, "invalid option `-L'"),
        ("-AEt 192.0.2.10:80", 2, "invalid option `-AEt'"),
        ("-A --help", 2, "invalid option `--help'"),
        ("-A -t 192.0.2.10:80 -u 192.0.2.10:80", 2, "multiple 'service-address' options specified"),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -m -g",
            2,
            "multiple 'forwarding-method' options specified",
        ),
        ("-L --exact --exact", 2, "multiple 'exact' options specified"),
        ("foo -L", 2, "unexpected argument foo"),
        ("-A -t 192.0.2.10:80 -p -- 5", 2, "unexpected argument 5"),
        ("--set 1 2 3 4", 2, "unexpected argument 4"),
        ("-A", 2, "You need to supply the 'service-address' option for the 'add-service' command"),
        (
            "-A -w 1",
            2,
            "You need to supply the 'service-address' option for the 'add-service' command",
        ),
        (
            "-a -t 192.0.2.10:80",
            2,
            "You need to supply the 'real-server' option for the 'add-server' command",
        ),
        ("-Sn -t 192.0.2.10:443", 2, "Illegal 'service-address' option with the 'save' command"),
        ("-C -n", 2, "Illegal 'numeric' option with the 'flush' command"),
        (
            "-A --thresholds --daemon -t 192.0.2.10:80",
            2,
            "Illegal 'daemon' option with the 'add-service' command",
        ),
        ("--start-daemon master -n", 2, "Illegal 'numeric' option with the 'start-daemon' command"),
        # Ends.
        ("-A -t bad:80", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 5", 2, "illegal virtual server address[:port] specified"),
        ("-A -t ''", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 192.0.2.10:99999", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 192.0.2.10:", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 192.0.2.10:nosuch", 2, "illegal virtual server address[:port] specified"),
        ("-A -u 192.0.2.10:http", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 192.0.2.10:80:90", 2, "illegal virtual server address[:port] specified"),
        ("-A -t [2001:db8::10]", 2, "illegal virtual server address[:port] specified"),
        ("-A -t [2001:db8::10]80", 2, "illegal virtual server address[:port] specified"),
        ("-A -t [192.0.2.10]:80", 2, "illegal virtual server address[:port] specified"),
        ("-A -t [fe80::1%eth0]:80", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 2001:db8::10:80", 2, "Zero port specified for non-persistent service"),
        ("-a -t 192.0.2.10:80 -r bad", 2, "illegal real server address[:port] specified"),
        ("-a -r [fd00:5::2] -t 192.0.2.10:80", 2, "illegal real server address[:port] specified"),
        # Numbers.
        ("-A -f 0", 2, "invalid fwmark value `0' specified"),
        ("-A -f 4294967296", 2, "invalid fwmark value `4294967296' specified"),
        ("-A -f -s", 2, "invalid fwmark value `-s' specified"),
        ("-A -t 192.0.2.10:80 -p 0", 2, "invalid timeout value `0' specified"),
        ("-A -t 192.0.2.10:80 -p 2678401", 2, "invalid timeout value `2678401' specified"),
        ("-A -t 192.0.2.10:80 -p ''", 2, "invalid timeout value `' specified"),
        ("--set 1 2", 2, "--set option requires 3 timeout values"),
        ("--set 1 1 5x", 2, "invalid timeout value `5x' specified"),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2 -w -1", 2, "illegal weight specified"),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2 -w 2147483648", 2, "illegal weight specified"),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2 -x abc", 2, "illegal u_threshold specified"),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2 -y ''", 2, "illegal l_threshold specified"),
        # Services.
        ("-A -6 -f 5", 2, "-6 used before -f\n"),
        ("-A -t 192.0.2.10:80 -6", 2, "-6 used before -f\n"),
        ("-A -t 192.0.2.10:0", 2, "Zero port specified for non-persistent service"),
        ("-E -t 192.0.2.10 -o", 2, "Zero port specified for non-persistent service"),
        ("-A -t 192.0.2.10:80 -o", 2, "One-Packet Scheduling is only for UDP virtual services"),
        ("-A -t 192.0.2.10:80 -s rr -b sh-port", 2, "incompatible scheduler flag `sh-port'"),
        ("-A -t 192.0.2.10:0 -b sh-port", 2, "incompatible scheduler flag `sh-port'"),
        ("-A -t 192.0.2.10:80 -b foo -w 1", 2, "invalid scheduler flag `foo'"),
        ("-A -t 192.0.2.10:80 -M foo", 2, "illegal virtual server persistent mask specified"),
        ("-A -t [2001:db8::10]:80 -M 129", 2, "illegal ipv6 netmask specified"),
        ("-A -M 255.0.0.0 -t [2001:db8::10]:80", 2, "illegal ipv6 netmask specified"),
        ("-A -M 64 -t 192.0.2.10:80", 2, "illegal virtual server persistent mask specified"),
        # Servers and tunnels.
        (
            "-a -t 192.0.2.10:80 -r [fd00:5::2]:80 -m",
            2,
            "Different address family is allowed only for tunneling servers",
        ),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 --tun-csum",
            2,
            "Tunnel options conflict with forward method",
        ),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-type foo", 2, "illegal tunnel type specified"),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-type GRE", 2, "illegal tunnel type specified"),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-type gue",
            2,
            "You need to supply the 'tun-port' option for the 'gue' tunnel type",
        ),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-type gue --tun-port 0",
            2,
            "illegal tunnel port specified",
        ),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-port 5",
            2,
            "Illegal 'tun-port' option with the 'ipip' tunnel type",
        ),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-type gre --tun-remcsum",
            2,
            "Illegal 'tun-remcsum' option with the 'gre' tunnel type",
        ),
        (
            "-a -t 192.0.2.10:80 -r 10.1.0.2 -i --tun-type gre --tun-csum --tun-nocsum",
            2,
            "The option 'tun-csum' conflicts with the 'tun-nocsum' option in the 'gre' tunnel type",
        ),
        # Listings.
        (
            "-L -c -t 192.0.2.10:80",
            2,
            (
                "The option 'service-address' conflicts with the 'connection' option "
                "in the 'list' command"
            ),
        ),
        (
            "-L --timeout -t 192.0.2.10:80 -c --daemon",
            2,
            (
                "The option 'service-address' conflicts with the 'connection' option "
                "in the 'list' command"
            ),
        ),
        (
            "-L --daemon --timeout",
            2,
            "The option 'daemon' conflicts with the 'timeout' option in the 'list' command",
        ),
        ("-L -c --stats", 2, "options conflicts in the list command"),
        ("-L --timeout --persistent-conn", 2, "options conflicts in the list command"),
        # Daemons.
        ("--start-daemon foo", 2, "illegal start-daemon parameter specified"),
        ("--stop-daemon foo", 2, "illegal start_daemon specified"),
        ("--start-daemon master --syncid 256", 2, "illegal syncid specified"),
        ("--start-daemon master --sync-maxlen 0", 2, "illegal sync-maxlen specified"),
        ("--start-daemon master --mcast-port 65536", 2, "illegal mcast-port specified"),
        ("--start-daemon master --mcast-ttl 0", 2, "illegal mcast-ttl specified"),
        ("--start-daemon master --mcast-group 1.2.3.4", 2, "invalid IPv4 mcast-group `1.2.3.4'"),
        ("--start-daemon master --mcast-group fe80::1", 2, "invalid IPv6 mcast-group `fe80::1'"),
    ],
)
def test_a_command_line_is_refused(line: str, status: int, text: str) -> None:
    assert refused(line) == (status, text)


def test_a_restore_goes_on_only_after_words_that_cannot_be_taken_apart() -> None:
    for line, ends in [("-L --foo", False), ("-A -t", False), ("-Q", True), ("-L foo", True)]:
        with pytest.raises(UsageError) as caught:
            parse(shlex.split(line), NAMES)
        assert caught.value.ends_restore == ends, line


def test_mistakes_are_found_in_the_order_of_words_then_rules() -> None:
    assert refused("-A -w abc foo --bar")[1] == "illegal weight specified"
    assert refused("-A --bar -w abc")[1] == "--bar: unknown option"
    assert refused("-a -t 192.0.2.10:80 -s rr foo")[1] == "unexpected argument foo"


def test_without_names_only_numbers_are_understood() -> None:
    for end in ("www.example.test:80", "192.0.2.10:http", "www.example.test"):
        with pytest.raises(UsageError, match="illegal virtual server"):
            parse(["-A", "-t", end, "-p"], NoNames())
