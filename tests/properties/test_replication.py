"""Two directors of which one hears of the other's connections: in the end they have the same.

Whatever comes at the first, and whatever of its words is lost on the way: when the buckets
whose sums differ have been repaired, all that it has told is there, and nothing else.
"""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.datapath.marks import MarkRule
from lvsha.datapath.service_policy import ESTABLISHED
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.model import (
    BUCKETS,
    ConnectionChange,
    ConnectionDetails,
    ConnectionRecord,
    Protocol,
    parse_address,
)
from lvsha.runs import Runs
from tests import packets
from tests.laboratory import DR, NAT, SYNC_ID, TUN, V4, V6, Laboratory
from tests.packets import ACK, FIN, RST, SYN
from tests.twins import carry, repair

MARK, MARKED = 3, "192.0.2.200"
CLIENTS = ("198.51.100.71", "198.51.100.72", "198.51.101.9")
SERVERS = ("10.1.0.11", "10.1.0.12", "10.1.0.13")
CLIENTS6, SERVER6 = ("2001:db8:1::71", "2001:db8:2::72"), "fd00:5::b"
PASSIVE = b"227 (%b,19,%d)\r\n"
CALL = b"INVITE sip:a SIP/2.0\r\nCall-ID: %d@a\r\n\r\n"


def build() -> Laboratory:
    """Services of every kind that tells its connections in a way of its own."""
    laboratory = Laboratory(reporting=ESTABLISHED)
    laboratory.set(expire_quiescent_template=1)
    for port, method, persistence in ((80, NAT, 0), (81, DR, 0), (82, TUN, 60), (443, NAT, 300)):
        service = laboratory.service(port=port, persistence=persistence)
        for number, server in enumerate(SERVERS):
            laboratory.server(service, server, method=method, weight=number + 1)
    for server in SERVERS[:2]:
        laboratory.server(
            laboratory.director.services.get(ServiceIdentity(4, 6, parse_address(V4), 21))
            or laboratory.service(port=21),
            server,
        )
    names = laboratory.service(port=53, protocol=Protocol.UDP)
    calls = laboratory.service(port=5060, protocol=Protocol.UDP, persistence=60, engine="sip")
    whole = laboratory.service(V6, 0, persistence=60, netmask=b"\xff" * 4 + bytes(12))
    for server in SERVERS:
        laboratory.server(names, server)
        laboratory.server(calls, server)
    laboratory.server(whole, SERVER6)
    services, marked = laboratory.director.services, ServiceIdentity(4, 6, mark=MARK)
    services.add(marked, ServiceOptions("rr", persistence=60))
    for server in SERVERS:
        services.add_server(marked, parse_address(server), 0, ServerOptions(NAT))
    laboratory.director.marks.set([MarkRule(MARK, (parse_address(MARKED), 32))])
    laboratory.director.registry.mark_tallies[MARK] = laboratory.tally
    return laboratory


KINDS = (
    *("tcp", "tcp", "tcp", "udp", "call", "ftp", "ftp", "wide", "marked", "reply"),
    *("sleep", "weight", "leave", "carry", "carry"),
)
small = st.integers(0, 15)
happenings = st.lists(
    st.tuples(st.sampled_from(KINDS), small, small, small), min_size=10, max_size=60
)
FLAGS = (SYN, SYN, ACK, ACK, FIN | ACK, RST)


def happen(laboratory: Laboratory, kind: str, one: int, two: int, three: int) -> None:
    """Let something come at a director."""
    client, port = CLIENTS[one % 3], 40000 + 256 * (one // 3) + two % 2
    flags = FLAGS[three % len(FLAGS)]
    send = laboratory.send
    match kind:
        case "tcp":
            packet = packets.tcp(client, port, V4, (80, 81, 82, 443)[two % 4], flags)
            send("client", packet)
        case "marked":
            send("client", packets.tcp(client, port, MARKED, 1000 + two, flags))
        case "wide":
            send("client", packets.tcp(CLIENTS6[one % 2], port, V6, 1000 + two, flags))
        case "udp":
            send("client", packets.udp(client, port, V4, 53))
        case "call":
            send("client", packets.udp(client, port, V4, 5060, CALL % (two % 3)))
        case "ftp":
            for opening in (SYN, ACK):
                send("client", packets.tcp(client, 40000, V4, 21, opening))
            text = (b"PASV\r\n", b"EPSV\r\n", b"PORT 198,51,100,71,19,136\r\n")[three % 3]
            send("client", packets.tcp(client, 40000, V4, 21, ACK, text))
            for server in SERVERS[:2]:
                answer = PASSIVE % (server.replace(".", ",").encode(), two)
                send("server", packets.tcp(server, 21, client, 40000, ACK, answer))
            send("client", packets.tcp(client, 40001, V4, 19 * 256 + two, flags))
        case "reply":
            for number in (80, 443, 20, 1000 + two):
                server = SERVERS[two % 3]
                send("server", packets.tcp(server, number, client, port, SYN | ACK))
        case "sleep":
            laboratory.sleep((0.5, 3, 11, 61, 130, 310, 1000, 2000)[one % 8])
        case "weight":
            servers = [s for service in laboratory.director.services for s in service.servers]
            laboratory.edit(servers[one % len(servers)], two % 3)
        case _:
            for _ in laboratory.director.registry.tell_all({SYNC_ID}):
                pass


def told(laboratory: Laboratory) -> dict[bytes, ConnectionRecord]:
    replication = laboratory.director.replication
    records = Runs(list(filter(None, replication.records(laboratory.tally, range(BUCKETS)))))
    assert len({each.key for each in records}) == len(records) == laboratory.tally.told
    return {each.key: each for each in records}


def single(laboratory: Laboratory) -> set[tuple[object, ...]]:
    """What was told and has never children, with its server and state.

    Parents end in steps of a minute, which two directors do not count from the same moment.
    """
    records = told(laboratory).values()
    return {record[:5] for record in records if not record.is_template and record.key[-1] != 21}


def without_parent(record: ConnectionRecord) -> ConnectionDetails:
    """What a record has beside, but for its parent, which may be one that nobody was told of."""
    return replace(record.details or ConnectionDetails(), parent=b"")


def parents(laboratory: Laboratory) -> dict[bytes, bytes]:
    """What belongs to what, of all that was told and stands."""
    return {
        c.record_key: c.parent.record_key
        for c in laboratory.director.registry.table.connections()
        if c.parent is not None
        and c.tally is not None
        and c.parent.tally is not None
        and min(c.told_state, c.parent.told_state) >= 0
    }


@settings(max_examples=300, deadline=None)
@given(happenings, st.booleans(), st.randoms(use_true_random=False))
def test_what_one_director_tells_another_one_has(
    sequence: list[tuple[str, int, int, int]], is_lossy: bool, dice: Random
) -> None:
    source, copy = build(), build()
    for address in (V4, V6):
        copy.director.hold(parse_address(address), held=False)

    def arrives(_: ConnectionChange) -> bool:
        return not is_lossy or dice.random() < 0.6

    for kind, *numbers in sequence:
        happen(source, kind, *numbers)
        if kind in {"carry", "sleep"}:
            carry(source, copy, arrives)
            copy.now = source.now
            copy.sleep(0)
            carry(source, copy, arrives)
        assert source.mistallied() == source.miscounted() == []
        assert copy.mistallied() == copy.miscounted() == []
        # A copy that has ended by itself is nobody's business.
        copy.director.registry.take_changes()
    carry(source, copy, arrives)
    if not is_lossy:
        assert single(copy) == single(source)
    repaired = repair(source, copy)
    assert source.tally.sums == copy.tally.sums
    assert copy.tally.connections == copy.tally.told == source.tally.told
    there, here = told(source), told(copy)
    assert here.keys() == there.keys()
    for key, record in there.items():
        assert here[key][1:5] == record[1:5]
        if not is_lossy:
            assert without_parent(here[key]) == without_parent(record)
    assert parents(copy).items() <= parents(source).items()
    if not is_lossy and not repaired:
        assert parents(copy) == parents(source)
