"""The commands of ipvsadm on a director: what they change, what they say, how they end."""

import math
import random
import shlex

import pytest

from lvsha.datapath.director import Director
from lvsha.datapath.services import ServiceIdentity
from lvsha.ipvsadm import procfiles
from lvsha.ipvsadm.commands import PAGE_LINES, NoDaemons, Result, restore_words, run
from lvsha.ipvsadm.names import NoNames, RecordedNames
from lvsha.model import ForwardMethod, Protocol, parse_address
from lvsha.sync.ipvs.roster import Role, Roster, Terms
from lvsha.sync_daemons import SyncDaemons

INVALID = "Invalid operation.  Possibly wrong module version, address not unicast, ...\n"
NOW = 1000.0


class Machine:
    """A director, and a shell in which ipvsadm is typed."""

    def __init__(self) -> None:
        self.director = Director(connections_max=10_000, dice=random.Random(1))
        self.daemons = SyncDaemons(Roster({"vec2": 1500}.get))

    def run(self, line: str, stdin: str = "", following: int = 0) -> Result:
        return run(
            shlex.split(line),
            stdin,
            self.director,
            NoNames(),
            NOW,
            self.daemons,
            following=following,
        )

    def done(self, *lines: str) -> str:
        """Run commands that succeed; returns what the last one printed."""
        out = ""
        for line in lines:
            result = self.run(line)
            assert (result.status, result.err) == (0, ""), line
            out = result.out
        return out

    def refused(self, line: str) -> tuple[int, str]:
        result = self.run(line)
        assert result.out == ""
        return result.status, result.err


@pytest.fixture
def machine() -> Machine:
    one = Machine()
    one.done(
        "-A -t 192.0.2.10:80 -s rr",
        "-a -t 192.0.2.10:80 -r 10.1.0.2:8080 -m -w 3",
        "-a -t 192.0.2.10:80 -r 10.1.0.1:80 -g",
    )
    return one


def test_services_and_servers_are_added_edited_and_removed(machine: Machine) -> None:
    machine.done(
        "-E -t 192.0.2.10:80 -s wlc -p 60",
        "-e -t 192.0.2.10:80 -r 10.1.0.2:8080 -m -w 7 -x 9 -y 3",
        "-d -t 192.0.2.10:80 -r 10.1.0.1:80",
        "-A -f 5 -s sh -b sh-port",
    )
    assert machine.done("-Sn") == (
        "-A -t 192.0.2.10:80 -s wlc -p 60\n"
        "-a -t 192.0.2.10:80 -r 10.1.0.2:8080 -m -w 7\n"
        "-A -f 5 -s sh -b sh-port\n"
    )
    machine.done("-D -f 5")
    assert len(machine.director.services) == 1
    machine.done("-C")
    assert len(machine.director.services) == 0


def test_servers_are_listed_sorted_or_newest_first(machine: Machine) -> None:
    def servers(line: str) -> list[str]:
        lines = machine.done(line).splitlines()
        return [words.split()[1] for words in lines if words.startswith("  -> 1")]

    machine.done("-a -t 192.0.2.10:80 -r 10.1.0.9 -m")
    assert servers("-Ln") == ["10.1.0.1:80", "10.1.0.2:8080", "10.1.0.9:80"]
    assert servers("-Ln --nosort") == ["10.1.0.9:80", "10.1.0.1:80", "10.1.0.2:8080"]


def test_one_service_is_listed_without_the_version(machine: Machine) -> None:
    machine.done("-A -u 192.0.2.10:53")
    assert machine.done("-Ln -u 192.0.2.10:53") == (
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "UDP  192.0.2.10:53 wlc\n"
    )
    assert machine.done("-Ln").startswith("IP Virtual Server version 1.2.1 (size=4096)\nProt ")


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        ("-A -t 192.0.2.10:80", 255, "Service already exists\n"),
        ("-A -t 192.0.2.40:80 -s nosuch", 255, "Scheduler or persistence engine not found\n"),
        ("-E -t 192.0.2.10:80 --pe nosuch", 255, "Scheduler or persistence engine not found\n"),
        ("-E -t 192.0.2.99:80", 255, "No such service\n"),
        ("-D -t 192.0.2.99:80", 255, "No such service\n"),
        ("-Z -t 192.0.2.99:80", 255, "No such service\n"),
        ("-L -t 192.0.2.99:80", 1, "No such service\n"),
        ("-a -t 192.0.2.99:80 -r 10.1.0.2", 255, "Service not defined\n"),
        ("-e -t 192.0.2.99:80 -r 10.1.0.2", 255, "Service not defined\n"),
        ("-d -t 192.0.2.99:80 -r 10.1.0.2", 255, "Service not defined\n"),
        ("-a -t 192.0.2.10:80 -r 10.1.0.2:8080 -m", 255, "Destination already exists\n"),
        ("-e -t 192.0.2.10:80 -r 10.1.0.99 -m", 255, "No such destination\n"),
        ("-d -t 192.0.2.10:80 -r 10.1.0.99", 255, "No such destination\n"),
        ("-a -t 192.0.2.10:80 -r 10.1.0.9 -x 5 -y 9", 255, "Numerical result out of range\n"),
        ("--start-daemon master --mcast-interface nosuch0", 255, "No such device\n"),
        ("--stop-daemon master", 255, "No daemon is running\n"),
        ("-L foo", 2, "unexpected argument foo\n"),
        ("-Q", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n"),
    ],
)
def test_what_is_refused_changes_nothing(
    machine: Machine, line: str, status: int, text: str
) -> None:
    before = machine.done("-Sn")
    assert machine.refused(line) == (status, text)
    assert machine.done("-Sn") == before


def test_counters_begin_at_zero_again(machine: Machine) -> None:
    machine.done("-A -u 192.0.2.10:53", "-a -u 192.0.2.10:53 -r 10.1.0.2")
    for service in machine.director.services:
        service.servers[0].statistics.in_packets = 5
    machine.done("-Z -u 192.0.2.10:53")
    counts = machine.done("-Ln --stats").splitlines()[3:]
    assert [line.split()[3] for line in counts if not line.startswith("  ->")] == ["5", "0"]
    machine.done("-Z")
    assert procfiles.read("/proc/net/ip_vs_stats", machine.director, NOW) == (
        "   Total Incoming Outgoing         Incoming         Outgoing\n"
        "   Conns  Packets  Packets            Bytes            Bytes\n"
        f"{0:8} {0:8} {0:8} {0:16} {0:16}\n\n"
        " Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n"
        f"{0:8} {0:8} {0:8} {0:16} {0:16}\n"
    )


def test_timeouts_are_set_and_0_leaves_one_as_it_is(machine: Machine) -> None:
    assert machine.done("-L --timeout") == "Timeout (tcp tcpfin udp): 900 120 300\n"
    machine.done("--set 120 0 30")
    assert machine.done("-L --timeout") == "Timeout (tcp tcpfin udp): 120 120 30\n"


def test_help_and_version(machine: Machine) -> None:
    assert machine.done("-h").startswith("ipvsadm v1.31 ")
    assert "--add-service" in machine.done("--help")
    assert machine.done("-v").startswith("ipvsadm v1.31 ")


# Daemons


def test_daemons_are_started_listed_and_stopped(machine: Machine) -> None:
    machine.done(
        "--start-daemon backup --mcast-interface vec2 --sync-maxlen 9000 --mcast-group ff02::99 "
        "--mcast-port 9 --mcast-ttl 3",
        "--start-daemon master --mcast-interface vec2 --syncid 5",
    )
    assert machine.done("-L --daemon") == (
        "master sync daemon (mcast=vec2, syncid=5, maxlen=1472, group=224.0.0.81, port=8848, "
        "ttl=1)\n"
        "backup sync daemon (mcast=vec2, syncid=0, maxlen=9000, group=ff02::99, port=9, ttl=3)\n"
    )
    assert machine.refused("--start-daemon backup --mcast-interface vec2") == (
        255,
        "Daemon has already run\n",
    )
    assert machine.refused("--start-daemon backup --mcast-interface vec9") == (
        255,
        "No such device\n",
    )
    machine.done("--stop-daemon master", "--stop-daemon backup --syncid 77")
    assert machine.done("-L --daemon") == ""
    assert machine.refused("--stop-daemon backup") == (255, "No daemon is running\n")


def test_daemons_of_the_pair_file_are_listed_and_left_alone(machine: Machine) -> None:
    roster = Roster({"vec2": 1500}.get)
    roster.configure([(Role.MASTER, Terms("vec2", 51)), (Role.BACKUP, Terms("vec2", 51))])
    machine.daemons = SyncDaemons(roster)
    assert machine.done("-L --daemon").count("syncid=51") == 2
    refusal = (255, "Sync is configured in the pair file, not by commands\n")
    assert machine.refused("--start-daemon master --mcast-interface vec2") == refusal
    assert machine.refused("--stop-daemon master") == refusal


def test_a_server_of_another_family_and_sync_daemons_exclude_each_other(machine: Machine) -> None:
    server = "-a -t 192.0.2.10:80 -r [fd00:5::2]:80 -i"
    machine.done(server)
    assert machine.refused("--start-daemon master --mcast-interface vec2") == (255, INVALID)
    machine.done("-d -t 192.0.2.10:80 -r [fd00:5::2]:80")
    machine.done("--start-daemon master --mcast-interface vec2")
    assert machine.refused(server) == (255, INVALID)


def test_without_daemons_none_can_be_started() -> None:
    director = Director(connections_max=10, dice=random.Random(1))
    for line, text in [
        ("--start-daemon master", "Sync is configured in the pair file, not by commands\n"),
        ("--stop-daemon master", "No daemon is running\n"),
    ]:
        result = run(shlex.split(line), "", director, NoNames(), NOW)
        assert (result.status, result.err) == (255, text)
    assert run(["-L", "--daemon"], "", director, NoNames(), NOW).out == ""
    assert NoDaemons().running() == ()


# Restore


def test_a_saved_table_is_restored(machine: Machine) -> None:
    machine.done(
        "-A -t [2001:db8::10]:443 -s mh -b mh-port -p 60 -M 64",
        "-a -t [2001:db8::10]:443 -r fd00:5::2 -i --tun-type gue --tun-port 6080 --tun-csum",
    )
    saved = machine.done("-Sn")
    other = Machine()
    assert other.run("-R", saved) == Result()
    assert other.done("-Sn") == saved


def test_a_restore_skips_blank_lines_comments_and_its_own_name(machine: Machine) -> None:
    result = machine.run(
        "-R", "\n   \n# all of it anew\nipvsadm -C\n\t-A ipvsadm -t 192.0.2.1:80\r\n"
    )
    assert result == Result()
    assert machine.done("-Sn") == "-A -t 192.0.2.1:80 -s wlc\n"
    assert restore_words("# -C") == []


def test_a_restore_goes_on_after_what_the_director_refuses(machine: Machine) -> None:
    result = machine.run("-R", "-A -t 192.0.2.10:80\n-D -f 9\n-A -t 192.0.2.1:80")
    assert result == Result(0, err="Service already exists\nNo such service\n")
    assert machine.run("-R", "-C\n-D -f 9\n").status == 255
    assert machine.done("-Sn") == ""


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        ("-A -w 1 -t 192.0.2.1:80", 2, "Illegal 'weight' option with the 'add-service' command\n"),
        ("-A -t 192.0.2.1:80 foo", 2, "unexpected argument foo\n"),
        ("foo", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n"),
        ("-R", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n"),
    ],
)
def test_a_restore_ends_at_a_mistake(machine: Machine, line: str, status: int, text: str) -> None:
    result = machine.run("-R", f"-A -f 1\n{line}\n-C\n")
    assert result == Result(status, err=text, ends_restore=True)
    assert len(machine.director.services) == 2


def test_a_restore_goes_on_after_words_that_cannot_be_taken_apart(machine: Machine) -> None:
    result = machine.run("-R", "-A -f 1 --foo\n-C\n")
    assert result == Result(0, err="--foo: unknown option\n")
    assert len(machine.director.services) == 0


def test_a_restore_may_list_and_ends_at_help(machine: Machine) -> None:
    result = machine.run("-R", "-L -n --timeout\n-v\n-C\n")
    assert result.out.startswith("Timeout (tcp tcpfin udp): 900 120 300\nipvsadm v1.31 ")
    assert result.ends_restore
    assert len(machine.director.services) == 1


# Pages


def pages(machine: Machine, line: str) -> list[str]:
    found: list[str] = []
    following: int | None = 0
    while following is not None:
        result = machine.run(line, following=following)
        found.append(result.out)
        following = result.following
    return found


def test_a_long_list_of_services_comes_in_pages(machine: Machine) -> None:
    services = 1500
    for number in range(services):
        identity = ServiceIdentity(4, Protocol.TCP, mark=number + 1)
        machine.director.services.add(identity, next(iter(machine.director.services)).options)
    for line, heads in [("-Ln", 3), ("-Sn", 0), ("-Ln --nosort --stats", 3)]:
        found = pages(machine, line)
        assert len(found) == math.ceil((heads + services + 3) / PAGE_LINES)
        lines = "".join(found).splitlines()
        assert len(lines) == heads + services + 3
        assert len(set(lines)) == len(lines)
        assert all(len(page.splitlines()) <= PAGE_LINES + 3 for page in found)


def connect(machine: Machine, number: int) -> None:
    """Enter a connection of the client 10.0.0.0 + number."""
    service = next(iter(machine.director.services))
    server = service.servers[-1]
    assert server.method is ForwardMethod.NAT
    client = (0x0A000000 + number).to_bytes(4)
    key = b"\x04\x06" + client + service.address + (number % 60_000 + 1).to_bytes(2) + b"\0\x50"
    binding = server.bind(service.address, 80, server.port)
    machine.director.registry.open(key, binding, NOW)


def test_a_long_list_of_connections_comes_in_pages(machine: Machine) -> None:
    for number in range(5000):
        connect(machine, number)
    found = pages(machine, "-Lnc")
    lines = "".join(found).splitlines()
    assert lines[0] == "IPVS connection entries"
    assert len(lines) == 2 + 5000
    assert len(set(lines)) == len(lines)
    assert all(len(page.splitlines()) <= 2 * PAGE_LINES + 2 for page in found)


def test_a_page_that_does_not_exist_is_empty(machine: Machine) -> None:
    assert machine.run("-Lnc", following=1 << 60).out == ""
    assert machine.run("-Ln", following=1 << 60).out == ""


def test_the_files_of_proc(machine: Machine) -> None:
    connect(machine, 1)
    for name, lines in [
        ("ip_vs", 6),
        ("ip_vs_conn", 2),
        ("ip_vs_conn_sync", 2),
        ("ip_vs_stats", 6),
        ("ip_vs_stats_percpu", 7),
        ("ip_vs_app", 1),
    ]:
        text = procfiles.read(f"/proc/net/{name}", machine.director, NOW)
        assert text is not None
        assert len(text.splitlines()) == lines
    assert procfiles.read("/proc/net/other", machine.director, NOW) is None


def test_listings_use_names() -> None:
    machine = Machine()
    machine.done("-A -t 192.0.2.10:80")
    names = RecordedNames("192.0.2.10 www.example.test", ["http 80/tcp"])
    result = run(["-S"], "", machine.director, names, NOW)
    assert result.out == "-A -t www.example.test:http -s wlc\n"
    assert parse_address("192.0.2.10") == names.address("www.example.test", 4)
