"""What becomes of packets in mid-stream that no connection matches, by what services say."""

from collections.abc import Sequence

import pytest

from lvsha.datapath.connections import Connection
from lvsha.datapath.marks import MarkRule
from lvsha.datapath.questions import PATIENCE
from lvsha.datapath.reasons import Reason
from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.service_policy import ServicePolicy, Unknown
from lvsha.datapath.services import ServiceIdentity, ServiceOptions
from lvsha.datapath.tcp_states import TcpState
from lvsha.datapath.verdicts import ACCEPT, WAIT
from lvsha.model import ConnectionRecord, ForwardMethod, Protocol, connection_key, parse_address
from lvsha.tally import Tally
from lvsha.wire import ipv4
from tests import packets
from tests.laboratory import C4, C6, DR, NAT, S4, S6, SYNC_ID, V4, V6, Laboratory, Left
from tests.packets import ACK, FIN, PSH, RST, SYN
from tests.reader import dissect, faults

FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])
OTHER4 = "10.1.0.12"


def build(unknown: Unknown, *, vip: str = V4, server: str = S4, **service: int | str) -> Laboratory:
    laboratory = Laboratory(unknown=unknown)
    protocol = Protocol.SCTP if service.pop("sctp", 0) else Protocol.TCP
    made = laboratory.service(vip, protocol=protocol, **service)  # type: ignore[arg-type]
    laboratory.server(made, server)
    return laboratory


def send(laboratory: Laboratory, flags: int = ACK, payload: bytes = b"") -> list[Left]:
    return laboratory.send("client", packets.tcp(C4, 40000, V4, 80, flags, payload))


def verdict_of(laboratory: Laboratory, packet: bytes) -> object:
    return laboratory.director.decide(
        laboratory.frame, laboratory.put("client", packet), laboratory.now
    )


def connections(laboratory: Laboratory) -> list[Connection]:
    return list(laboratory.director.registry.table.connections())


def key(port: int = 40000) -> bytes:
    return connection_key(Protocol.TCP, parse_address(C4), port, parse_address(V4), 80)


def record(port: int = 40000, server: str = S4) -> ConnectionRecord:
    return ConnectionRecord(
        key(port), parse_address(server), 80, ForwardMethod.NAT, TcpState.ESTABLISHED, 0, 900.0
    )


def the_reset(left: Sequence[Left]) -> tuple[str, str, int, int, str]:
    """Ends and flags of the one packet that left, which goes to the client and is in order."""
    (one,) = left
    assert one.side == "client"
    assert faults(one.packet) == []
    read = dissect(one.packet)
    return (
        read.src,
        read.dst,
        read.payload.sport,
        read.payload.dport,
        str(getattr(read.payload, "flags", "")),
    )


# A reset


@FAMILIES
@pytest.mark.parametrize("flags", [ACK, ACK | PSH, FIN | ACK, 0, FIN])
def test_the_sender_is_told_by_a_reset_in_the_name_of_the_service(
    client: str, vip: str, server: str, flags: int
) -> None:
    laboratory = build(Unknown.RESET, vip=vip, server=server)
    left = laboratory.send("client", packets.tcp(client, 40000, vip, 80, flags, b"data"))
    says = "R" if flags & ACK else "RA"
    assert the_reset(left) == (vip, client, 80, 40000, says)
    assert laboratory.drops() == {Reason.RESET: 1}
    assert connections(laboratory) == []


def test_a_reset_has_the_type_of_service_of_what_it_answers_but_no_notice_of_congestion() -> None:
    laboratory = build(Unknown.RESET)
    packet = bytearray(packets.tcp(C4, 40000, V4, 80, ACK))
    packet[1], packet[10:12] = 0xBB, bytes(2)
    packet[10:12] = packets.internet_checksum(bytes(packet[:20])).to_bytes(2)
    (left,) = laboratory.send("client", bytes(packet))
    assert left.packet[1] == 0xB8
    laboratory = build(Unknown.RESET, vip=V6, server=S6)
    packet = bytearray(packets.tcp(C6, 40000, V6, 80, ACK))
    packet[:2] = b"\x6b\xb0"
    (left,) = laboratory.send("client", bytes(packet))
    assert left.packet[:4] == b"\x6b\x80\x00\x00"


@pytest.mark.parametrize("unknown", Unknown)
@pytest.mark.parametrize("flags", [RST, RST | ACK])
def test_a_reset_is_answered_by_nothing(unknown: Unknown, flags: int) -> None:
    laboratory = build(unknown)
    if unknown is Unknown.KERNEL:
        assert verdict_of(laboratory, packets.tcp(C4, 40000, V4, 80, flags)) is ACCEPT
        return
    assert send(laboratory, flags) == []
    if unknown is Unknown.ASK:
        assert laboratory.director.take_questions() == {SYNC_ID: [key()]}
        laboratory.director.deny([key()])
        assert laboratory.director.release(laboratory.now) == []
    assert laboratory.drops() == {Reason.NO_CONNECTION: 1}


def test_what_arrived_damaged_is_not_answered() -> None:
    laboratory = build(Unknown.RESET)
    packet = bytearray(packets.tcp(C4, 40000, V4, 80, ACK, b"data"))
    packet[-1] ^= 1
    assert laboratory.send("client", bytes(packet)) == []
    packet = bytearray(packets.tcp(C4, 40000, V4, 80, ACK))
    packet[32] = 0xF0
    assert laboratory.send("client", bytes(packet)) == []
    assert laboratory.drops() == {Reason.RESET: 2}


@FAMILIES
def test_a_checksum_that_is_still_partial_counts_as_right(
    client: str, vip: str, server: str
) -> None:
    laboratory = build(Unknown.RESET, vip=vip, server=server)
    l4 = 40 if ":" in client else 20
    packet = packets.tcp(client, 40000, vip, 80, ACK, b"data")
    partial = packets.with_partial_checksum(packet, l4, packets.TCP)
    vnet = packets.vnet_header(partial=True, l4=14 + l4)
    left = laboratory.send("client", partial, vnet)
    assert the_reset(left) == (vip, client, 80, 40000, "R")
    assert left[0].vnet == packets.NO_VNET


def test_resets_are_limited_as_other_answers_are() -> None:
    laboratory = Laboratory(answers_per_second=10)
    laboratory.server(laboratory.service())
    assert sum(len(send(laboratory)) for _ in range(100)) == 50
    laboratory.sleep(1)
    assert sum(len(send(laboratory)) for _ in range(100)) == 10
    assert laboratory.drops() == {Reason.RESET: 200}


@pytest.mark.parametrize("source", ["0.0.0.1", "127.0.0.9", "224.0.0.1", "255.255.255.255"])
def test_who_is_no_single_host_gets_no_reset(source: str) -> None:
    laboratory = build(Unknown.RESET)
    assert laboratory.send("client", packets.tcp(source, 40000, V4, 80, ACK)) == []


@pytest.mark.parametrize("chunk", [0, 3, 7])
def test_an_association_is_aborted(chunk: int) -> None:
    laboratory = build(Unknown.RESET, sctp=1)
    left = laboratory.send("client", packets.sctp(C4, 40000, V4, 80, chunk))
    assert the_reset(left)[:4] == (V4, C4, 80, 40000)
    assert left[0].packet[32:36] == b"\x06\x01\x00\x04"
    assert laboratory.drops() == {Reason.RESET: 1}


# The host


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, 0])
def test_the_host_gets_what_is_for_its_kernel(flags: int) -> None:
    laboratory = build(Unknown.KERNEL)
    assert verdict_of(laboratory, packets.tcp(C4, 40000, V4, 80, flags)) is ACCEPT
    assert laboratory.drops() == {}


# Adoption


@pytest.mark.parametrize(("method", "reply"), [(NAT, True), (DR, False)])
def test_an_adopted_connection_is_scheduled_and_goes_on(method: ForwardMethod, reply: bool) -> None:
    laboratory = Laboratory(unknown=Unknown.ADOPT)
    laboratory.server(laboratory.service(), method=method)
    (left,) = send(laboratory, ACK | PSH, b"data")
    assert left.side == "server"
    (one,) = connections(laboratory)
    assert one.state == TcpState.ESTABLISHED
    if reply:
        (left,) = laboratory.send("server", packets.tcp(S4, 80, C4, 40000, ACK))
        assert left.side == "client"
    assert len(send(laboratory)) == 1
    assert laboratory.drops() == {}


def test_two_directors_adopt_alike_where_the_client_alone_decides() -> None:
    chosen = []
    for scheduler in ("sh", "mh", "dh"):
        servers = set()
        for _ in range(2):
            laboratory = Laboratory(unknown=Unknown.ADOPT)
            service = laboratory.service(scheduler=scheduler)
            for last in range(11, 17):
                laboratory.server(service, f"10.1.0.{last}")
            send(laboratory)
            (one,) = connections(laboratory)
            servers.add(one.server.address)
        assert len(servers) == 1
        chosen.append(servers)


def test_an_adopted_connection_of_a_persistent_service_keeps_to_its_clients_server() -> None:
    laboratory = Laboratory(unknown=Unknown.ADOPT)
    service = laboratory.service(persistence=300)
    for server in (S4, OTHER4):
        laboratory.server(service, server)
    for port in range(40000, 40004):
        laboratory.send("client", packets.tcp(C4, port, V4, 80, ACK))
    assert len({one.server for one in connections(laboratory)}) == 1
    assert sum(one.is_template for one in connections(laboratory)) == 1


def test_an_adopted_connection_to_an_ftp_server_is_read_along() -> None:
    laboratory = build(Unknown.ADOPT, port=21)
    laboratory.send("client", packets.tcp(C4, 40000, V4, 21, ACK))
    (one,) = connections(laboratory)
    assert one.dialogue is not None


def test_what_may_be_ftp_data_and_is_not_is_left_to_the_host() -> None:
    for unknown in Unknown:
        laboratory = build(unknown, port=21)
        assert verdict_of(laboratory, packets.tcp(C4, 40000, V4, 5000, ACK)) is ACCEPT


def test_an_association_is_adopted_as_the_sloppy_table_says() -> None:
    laboratory = build(Unknown.ADOPT, sctp=1)
    assert len(laboratory.send("client", packets.sctp(C4, 40000, V4, 80, 0))) == 1
    assert [one.state for one in connections(laboratory)] == [SctpState.ESTABLISHED]
    assert laboratory.send("client", packets.sctp(C4, 40001, V4, 80, 6)) == []
    assert laboratory.drops() == {Reason.NO_CONNECTION: 1}


# Questions


def test_a_packet_waits_and_goes_on_when_the_record_has_come() -> None:
    laboratory = build(Unknown.ASK)
    director = laboratory.director
    packet = packets.tcp(C4, 40000, V4, 80, ACK | PSH, b"data")
    assert verdict_of(laboratory, packet) is WAIT
    assert (director.asks, bool(director.questions)) == (True, True)
    assert director.take_questions() == {SYNC_ID: [key()]}
    assert director.release(laboratory.now) == []
    director.replication.apply([record()], laboratory.now)
    (left,) = laboratory.left(director.release(laboratory.now))
    assert left.side == "server"
    assert dissect(left.packet).load == b"data"
    assert faults(left.packet) == []
    (one,) = connections(laboratory)
    assert one.packets == one.server.statistics.in_packets == 1
    assert not director.asks
    assert laboratory.drops() == {}


def test_what_peers_deny_is_reset_and_so_is_what_follows_at_once() -> None:
    laboratory = build(Unknown.ASK)
    send(laboratory)
    laboratory.director.deny([key()])
    left = laboratory.left(laboratory.director.release(laboratory.now))
    assert the_reset(left) == (V4, C4, 80, 40000, "R")
    assert the_reset(send(laboratory)) == (V4, C4, 80, 40000, "R")
    assert laboratory.drops() == {Reason.RESET: 2}


@pytest.mark.parametrize("how", ["release", "housekeeping"])
def test_what_nobody_answers_is_forgotten(how: str) -> None:
    laboratory = build(Unknown.ASK)
    send(laboratory)
    laboratory.now += PATIENCE
    if how == "release":
        assert laboratory.director.release(laboratory.now) == []
    else:
        laboratory.sleep(0)
    assert laboratory.drops() == {Reason.UNANSWERED: 1}
    assert not laboratory.director.asks
    assert not laboratory.director.questions


def test_what_waited_for_a_connection_that_this_node_must_not_forward_is_forgotten() -> None:
    laboratory = build(Unknown.ASK)
    director = laboratory.director
    send(laboratory)
    director.replication.apply([record()], laboratory.now)
    laboratory.set(backup_only=1)
    director.back_up(frozenset([parse_address(V4)]))
    assert director.release(laboratory.now) == []
    assert laboratory.drops() == {Reason.UNANSWERED: 1}


def test_a_datagram_that_was_put_together_leaves_in_fragments_again() -> None:
    laboratory = build(Unknown.ASK)
    director = laboratory.director
    whole = packets.tcp(C4, 40000, V4, 80, ACK, bytes(2000), dont_fragment=False)
    verdicts = [verdict_of(laboratory, piece) for piece in ipv4.fragment(whole, 1000)]
    assert verdicts[-1] is WAIT
    director.replication.apply([record()], laboratory.now)
    left = laboratory.left(director.release(laboratory.now))
    assert len(left) == len(verdicts)


def test_where_nobody_is_told_of_an_address_nobody_is_asked() -> None:
    laboratory = build(Unknown.ASK)
    laboratory.director.registry.tallies.clear()
    assert the_reset(send(laboratory)) == (V4, C4, 80, 40000, "R")
    assert not laboratory.director.questions


def test_of_a_marks_other_addresses_is_asked_under_the_sync_id_of_the_mark() -> None:
    laboratory = Laboratory(unknown=Unknown.ASK)
    director = laboratory.director
    director.services.add(ServiceIdentity(4, Protocol.TCP, mark=7), ServiceOptions("rr"))
    director.marks.set([MarkRule(7, (parse_address("192.0.2.0"), 24))])
    director.registry.mark_tallies[7] = Tally(9)
    packet = packets.tcp(C4, 40000, "192.0.2.99", 80, ACK)
    assert verdict_of(laboratory, packet) is WAIT
    assert list(director.take_questions()) == [9]


# Whose address it is


@pytest.mark.parametrize("unknown", Unknown)
def test_nothing_is_done_for_an_address_that_another_node_holds(unknown: Unknown) -> None:
    laboratory = build(unknown)
    laboratory.director.hold(parse_address(V4), held=False)
    assert send(laboratory) == []
    assert laboratory.drops() == {Reason.NO_CONNECTION: 1}
    assert not laboratory.director.questions


@pytest.mark.parametrize("unknown", [Unknown.RESET, Unknown.KERNEL])
def test_nobody_is_told_that_a_connection_is_gone_while_its_address_moves(
    unknown: Unknown,
) -> None:
    laboratory = build(unknown)
    laboratory.director.hold(parse_address(V4), held=True, in_transition=True)
    assert send(laboratory) == []
    assert laboratory.drops() == {Reason.NO_CONNECTION: 1}
    laboratory.director.hold(parse_address(V4), held=True)
    if unknown is Unknown.RESET:
        assert len(send(laboratory)) == 1
    else:
        assert verdict_of(laboratory, packets.tcp(C4, 40000, V4, 80, ACK)) is ACCEPT


def test_each_service_has_its_own_way() -> None:
    laboratory = build(Unknown.RESET)
    other = laboratory.service(port=81, policy=ServicePolicy(unknown=Unknown.ADOPT))
    laboratory.server(other)
    for port, side in ((80, "client"), (81, "server")):
        (left,) = laboratory.send("client", packets.tcp(C4, 40000, V4, port, ACK))
        assert left.side == side


def test_while_any_packet_may_open_a_connection_none_is_in_mid_stream() -> None:
    laboratory = build(Unknown.RESET)
    laboratory.set(sloppy_tcp=1)
    (left,) = send(laboratory)
    assert left.side == "server"


def test_after_its_server_was_removed_a_connection_is_reset_if_it_is_to_end() -> None:
    laboratory = build(Unknown.RESET)
    laboratory.set(expire_nodest_conn=1)
    send(laboratory, SYN)
    (one,) = connections(laboratory)
    laboratory.remove(one.server)
    assert the_reset(send(laboratory)) == (V4, C4, 80, 40000, "R")
    assert connections(laboratory) == []
