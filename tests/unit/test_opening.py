"""Which connections and templates a packet opens, and what becomes of one that opens none."""

from dataclasses import replace

import pytest

from lvsha.datapath.connections import TEMPLATE_ASSURED, TEMPLATE_NONE, Connection
from lvsha.datapath.marks import MarkRule
from lvsha.datapath.reasons import Reason
from lvsha.datapath.service_policy import ESTABLISHED
from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ConnectionFlag, ForwardMethod, Protocol, parse_address
from tests import packets
from tests.laboratory import C4, C6, DR, NAT, S4, S6, V4, V6, Laboratory, Left
from tests.packets import ACK, FIN, RST, SYN

OTHER = "10.1.0.12"
MARK = 7
HOUR = 3600


def tcp(laboratory: Laboratory, port: int, *, client: str = C4, source: int = 40000) -> list[Left]:
    return laboratory.send("client", packets.tcp(client, source, V4, port, SYN))


def udp(laboratory: Laboratory, port: int, *, client: str = C4, source: int = 40000) -> list[Left]:
    return laboratory.send("client", packets.udp(client, source, V4, port))


def to(left: list[Left]) -> str:
    """The server that a packet went to by its link-layer address."""
    (one,) = left
    assert one.side == "server"
    return f"10.1.0.{int(one.dmac[-2:], 16)}"


def all_of(laboratory: Laboratory) -> list[Connection]:
    return list(laboratory.director.registry.table.connections())


def templates(laboratory: Laboratory) -> list[Connection]:
    return [each for each in all_of(laboratory) if each.is_template]


def connections(laboratory: Laboratory) -> list[Connection]:
    return [each for each in all_of(laboratory) if not each.is_template]


def ends(template: Connection) -> tuple[int, str, str, str]:
    """Protocol, client, virtual and real end, as a listing shows them."""
    client, virtual, real = (
        f"{'.'.join(map(str, address))}:{port}"
        for address, port in (
            template.client,
            template.virtual,
            (template.server.address, template.binding.port),
        )
    )
    return template.protocol, client, virtual, real


def two_servers(
    laboratory: Laboratory,
    service: VirtualService,
    port: int | None = None,
    *,
    method: ForwardMethod = NAT,
) -> tuple[RealServer, RealServer]:
    return (
        laboratory.server(service, S4, port, method=method),
        laboratory.server(service, OTHER, port, method=method),
    )


def persistent(
    port: int = 80, *, protocol: Protocol = Protocol.TCP, netmask: bytes = b"", timeout: int = 300
) -> tuple[Laboratory, VirtualService]:
    laboratory = Laboratory()
    service = laboratory.service(port=port, protocol=protocol, persistence=timeout, netmask=netmask)
    return laboratory, service


def marked(
    options: ServiceOptions | None = None,
) -> tuple[Laboratory, ServiceIdentity]:
    """A service of a firewall mark that all of 192.0.2.0/24 has."""
    laboratory = Laboratory()
    identity = ServiceIdentity(4, Protocol.TCP, mark=MARK)
    laboratory.director.services.add(identity, options or ServiceOptions(scheduler="rr"))
    laboratory.director.marks.set([MarkRule(MARK, (parse_address("192.0.2.0"), 24))])
    return laboratory, identity


# Persistence: what templates are of


def test_a_template_of_a_services_own_port_names_the_ports_of_both_ends() -> None:
    laboratory, service = persistent()
    laboratory.server(service, port=8080)
    tcp(laboratory, 80)
    (template,) = templates(laboratory)
    assert ends(template) == (6, f"{C4}:0", f"{V4}:80", f"{S4}:8080")
    (connection,) = connections(laboratory)
    assert ends(connection) == (6, f"{C4}:40000", f"{V4}:80", f"{S4}:8080")
    assert connection.parent is template


def test_a_template_of_ftp_stands_for_all_ports() -> None:
    laboratory, service = persistent(21)
    laboratory.server(service)
    tcp(laboratory, 21)
    (template,) = templates(laboratory)
    assert ends(template) == (6, f"{C4}:0", f"{V4}:0", f"{S4}:0")
    tcp(laboratory, 5000, source=40001)
    assert templates(laboratory) == [template]
    control, data = sorted(connections(laboratory), key=lambda each: each.client[1])
    assert ends(control)[3] == f"{S4}:21"
    assert ends(data) == (6, f"{C4}:40001", f"{V4}:5000", f"{S4}:5000")


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_template_of_a_service_for_all_ports_stands_for_all_of_its_protocol(
    protocol: Protocol,
) -> None:
    laboratory, service = persistent(0, protocol=protocol)
    laboratory.server(service)
    send = tcp if protocol is Protocol.TCP else udp
    for number, port in enumerate((80, 443, 8000)):
        send(laboratory, port, source=40000 + number)
    (template,) = templates(laboratory)
    assert ends(template) == (protocol, f"{C4}:0", f"{V4}:0", f"{S4}:0")
    assert sorted(c.binding.port for c in connections(laboratory)) == [80, 443, 8000]
    assert template.children == 3


def test_a_template_of_a_mark_stands_for_all_protocols_and_has_the_mark_for_an_address() -> None:
    laboratory, identity = marked(ServiceOptions("rr", persistence=300))
    laboratory.director.services.add_server(identity, parse_address(S4), 0, ServerOptions(NAT))
    laboratory.director.services.add_server(identity, parse_address(OTHER), 0, ServerOptions(NAT))
    first = to(tcp(laboratory, 80))
    assert to(udp(laboratory, 53)) == first
    assert to(laboratory.send("client", packets.tcp(C4, 1, "192.0.2.99", 25, SYN))) == first
    (template,) = templates(laboratory)
    assert ends(template) == (0, f"{C4}:0", f"0.0.0.{MARK}:0", f"{first}:0")
    assert sorted(c.binding.port for c in connections(laboratory)) == [25, 53, 80]


def test_a_mark_of_ipv6_stands_in_the_first_four_bytes_of_its_template() -> None:
    laboratory = Laboratory()
    identity = ServiceIdentity(6, Protocol.TCP, mark=MARK)
    services = laboratory.director.services
    services.add(identity, ServiceOptions("rr", persistence=300))
    services.add_server(identity, parse_address(S6), 0, ServerOptions(NAT))
    laboratory.director.marks.set([MarkRule(MARK, (parse_address(V6), 128))])
    laboratory.send("client", packets.tcp(C6, 1, V6, 80, SYN))
    (template,) = templates(laboratory)
    assert template.virtual == (MARK.to_bytes(4) + bytes(12), 0)


@pytest.mark.parametrize(
    ("netmask", "client", "same"),
    [
        (b"", "198.51.100.72", False),
        (b"\xff\xff\xff\xff", "198.51.100.72", False),
        (b"\xff\xff\xff\x00", "198.51.100.72", True),
        (b"\xff\xff\xff\x00", "198.51.101.71", False),
        (b"\xff\xff\x00\x00", "198.51.7.1", True),
    ],
)
def test_a_netmask_makes_clients_one(netmask: bytes, client: str, same: bool) -> None:
    laboratory, service = persistent(netmask=netmask)
    two_servers(laboratory, service)
    assert (to(tcp(laboratory, 80)) == to(tcp(laboratory, 80, client=client))) is same
    assert len(templates(laboratory)) == (1 if same else 2)


def test_a_prefix_makes_clients_of_ipv6_one() -> None:
    laboratory = Laboratory()
    service = laboratory.service(V6, persistence=300, netmask=b"\xff" * 8 + bytes(8))
    for server in ("fd00:5::b", "fd00:5::c"):
        laboratory.server(service, server)
    for client in (C6, "2001:db8:1::1", "2001:db8:1:0:ffff::"):
        laboratory.send("client", packets.tcp(client, 1, V6, 80, SYN))
    (template,) = templates(laboratory)
    assert template.client == (parse_address("2001:db8:1::"), 0)
    laboratory.send("client", packets.tcp("2001:db8:1:1::1", 1, V6, 80, SYN))
    assert len(templates(laboratory)) == 2


# Persistence: what templates do


def test_a_client_stays_with_its_server_and_others_are_scheduled() -> None:
    laboratory, service = persistent()
    two_servers(laboratory, service)
    first = to(tcp(laboratory, 80))
    assert {to(tcp(laboratory, 80, source=40001 + n)) for n in range(4)} == {first}
    assert to(tcp(laboratory, 80, client="198.51.100.99")) != first
    assert laboratory.miscounted() == []


def test_a_template_lives_from_the_last_connection_on_and_while_it_has_some() -> None:
    laboratory, service = persistent(timeout=100)
    laboratory.server(service)
    tcp(laboratory, 80)
    laboratory.sleep(50)
    tcp(laboratory, 80, source=40001)
    (template,) = templates(laboratory)
    assert template.expires == laboratory.now + 100
    laboratory.sleep(99)
    assert templates(laboratory) == [template]
    laboratory.sleep(3)
    assert all_of(laboratory) == []
    assert laboratory.miscounted() == []


def test_a_template_of_a_quiet_server_goes_on_unless_the_setting_says_not() -> None:
    laboratory, service = persistent()
    one, other = two_servers(laboratory, service)
    first = to(tcp(laboratory, 80))
    server, another = (one, other) if first == S4 else (other, one)
    laboratory.edit(server, 0)
    assert to(tcp(laboratory, 80, source=40001)) == first
    laboratory.set(expire_quiescent_template=1)
    assert to(tcp(laboratory, 80, source=40002)) != first
    old, new = sorted(templates(laboratory), key=lambda each: each.server is another)
    assert (old.virtual[1], old.children) == (65535, 2)
    assert (new.server, new.children) == (another, 1)
    assert laboratory.miscounted() == []


def test_a_template_sends_to_an_overloaded_server() -> None:
    laboratory, service = persistent()
    server = laboratory.server(service, upper=2)
    two = [tcp(laboratory, 80, source=40000 + n) for n in range(4)]
    assert server.overloaded
    assert [to(left) for left in two] == [S4] * 4


def test_a_template_of_a_removed_server_decides_no_more() -> None:
    laboratory, service = persistent()
    one, other = two_servers(laboratory, service)
    first = to(tcp(laboratory, 80))
    laboratory.remove(one if first == S4 else other)
    assert to(tcp(laboratory, 80, source=40001)) != first
    assert len(templates(laboratory)) == 2
    laboratory.sleep(HOUR)
    laboratory.sleep(HOUR)
    assert all_of(laboratory) == []


def test_no_template_is_made_where_no_server_is_found() -> None:
    laboratory, service = persistent()
    laboratory.server(service, weight=0)
    (left,) = tcp(laboratory, 80)
    assert (left.side, left.packet[20:22]) == ("client", b"\x03\x03")
    assert all_of(laboratory) == []


def test_a_template_is_assured_by_an_answer() -> None:
    laboratory, service = persistent()
    laboratory.server(service)
    tcp(laboratory, 80)
    (template,) = templates(laboratory)
    assert template.state == TEMPLATE_NONE
    laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))
    assert template.state == TEMPLATE_ASSURED
    laboratory, service = persistent(protocol=Protocol.UDP)
    laboratory.server(service)
    udp(laboratory, 80)
    udp(laboratory, 80)
    (template,) = templates(laboratory)
    assert template.state == TEMPLATE_NONE
    laboratory.send("server", packets.udp(S4, 80, C4, 40000))
    assert template.state == TEMPLATE_ASSURED


def test_a_connection_to_each_server_and_template_is_counted_once() -> None:
    laboratory, service = persistent()
    server = laboratory.server(service)
    for number in range(3):
        tcp(laboratory, 80, source=40000 + number)
    assert server.counted().connections == service.counted().connections == 3
    assert (server.active, server.inactive, server.persistent) == (3, 0, 1)


# SIP


def invite(call_id: bytes | None, source: int = 5060, client: str = C4) -> bytes:
    header = b"" if call_id is None else b"Call-ID: " + call_id + b"\r\n"
    text = b"INVITE sip:a@b SIP/2.0\r\n" + header + b"CSeq: 1\r\n\r\n"
    return packets.udp(client, source, V4, 5060, text)


def sip() -> tuple[Laboratory, VirtualService]:
    laboratory = Laboratory()
    service = laboratory.service(
        port=5060, protocol=Protocol.UDP, persistence=300, engine="sip", one_packet=False
    )
    return laboratory, service


def test_calls_of_one_client_are_scheduled_apart_and_each_stays_with_its_server() -> None:
    laboratory, service = sip()
    two_servers(laboratory, service)
    first = to(laboratory.send("client", invite(b"one@a")))
    second = to(laboratory.send("client", invite(b"two@a", 5061)))
    assert first != second
    assert to(laboratory.send("client", invite(b"one@a", 5062))) == first
    assert to(laboratory.send("client", invite(b"two@a", 5063))) == second
    assert len(templates(laboratory)) == 2


def test_a_packet_without_call_id_opens_nothing() -> None:
    laboratory, service = sip()
    laboratory.server(service)
    assert laboratory.send("client", invite(None)) == []
    assert laboratory.drops() == {Reason.NO_CALL_ID: 1}
    assert all_of(laboratory) == []


def test_a_server_may_open_a_dialogue_by_the_call_id_that_is_its_own() -> None:
    laboratory, service = sip()
    one, other = two_servers(laboratory, service)
    answer = packets.udp(S4, 5060, C4, 5070, b"OPTIONS x\r\nCall-ID: three@a\r\n\r\n")
    (left,) = laboratory.send("server", answer)
    assert left.side == "client"
    assert left.packet[12:16] == parse_address(V4)
    (connection,) = connections(laboratory)
    assert (connection.virtual, connection.server) == ((parse_address(V4), 5060), one)
    assert to(laboratory.send("client", invite(b"three@a", 5071))) == S4
    # If it belongs to another server it is taken over.
    answer = packets.udp(OTHER, 5060, C4, 5072, b"OPTIONS x\r\nCall-ID: three@a\r\n\r\n")
    assert len(laboratory.send("server", answer)) == 1
    assert to(laboratory.send("client", invite(b"three@a", 5073))) == OTHER
    assert other.persistent == 1
    assert laboratory.miscounted() == []


# One packet


def test_each_datagram_is_scheduled_by_itself_and_leaves_no_connection() -> None:
    laboratory = Laboratory(reporting=ESTABLISHED)
    service = laboratory.service(protocol=Protocol.UDP, one_packet=True)
    servers = two_servers(laboratory, service)
    assert [to(udp(laboratory, 80)) for _ in range(4)] == [OTHER, S4] * 2
    assert all_of(laboratory) == []
    for server in servers:
        assert server.idle
        assert server.counted().connections == server.counted().in_packets == 2
    assert laboratory.director.registry.take_changes() == {}


def test_the_answer_to_a_single_packet_finds_nothing() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(protocol=Protocol.UDP, one_packet=True))
    udp(laboratory, 80)
    assert laboratory.send("server", packets.udp(S4, 80, C4, 40000)) == []
    assert laboratory.drops() == {Reason.UNKNOWN_REPLY: 1}


def test_tcp_connections_of_a_mark_stay_though_its_datagrams_do_not() -> None:
    laboratory, identity = marked(ServiceOptions("rr", one_packet=True))
    laboratory.director.services.add_server(identity, parse_address(S4), 0, ServerOptions(NAT))
    udp(laboratory, 80)
    tcp(laboratory, 80)
    (connection,) = connections(laboratory)
    assert connection.protocol == Protocol.TCP
    assert laboratory.miscounted() == []


def test_a_single_packet_under_a_template_counts_at_the_template() -> None:
    laboratory = Laboratory()
    service = laboratory.service(protocol=Protocol.UDP, one_packet=True, persistence=300)
    two_servers(laboratory, service)
    assert len({to(udp(laboratory, 80)) for _ in range(3)}) == 1
    (template,) = all_of(laboratory)
    assert (template.is_template, template.packets, template.children) == (True, 3, 0)
    assert laboratory.miscounted() == []


# What opens nothing


def test_a_client_at_port_20_opens_nothing() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service())
    assert tcp(laboratory, 80, source=20) == []
    assert laboratory.drops() == {Reason.FTP_DATA: 1}
    assert all_of(laboratory) == []


@pytest.mark.parametrize(("flags", "opens"), [(SYN, True), (SYN | ACK, True), (ACK, False),
                                              (FIN | ACK, False), (0, False), (RST, False),
                                              (SYN | RST, False)])  # fmt: skip
def test_only_what_may_open_a_connection_does_and_sloppy_tcp_lets_all_but_a_reset(
    flags: int, opens: bool
) -> None:
    for sloppy in (False, True):
        laboratory = Laboratory()
        laboratory.server(laboratory.service())
        laboratory.set(sloppy_tcp=int(sloppy))
        laboratory.send("client", packets.tcp(C4, 1, V4, 80, flags))
        expected = opens or (sloppy and not flags & RST)
        assert len(all_of(laboratory)) == int(expected)


def test_a_service_of_all_ports_without_persistence_finds_no_server() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(port=0))
    (left,) = tcp(laboratory, 80)
    assert (left.side, left.packet[20:22]) == ("client", b"\x03\x03")
    assert laboratory.drops() == {Reason.NO_SERVER: 1}


def test_what_may_be_ftp_data_and_is_not_is_the_hosts_business() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(port=21))
    assert tcp(laboratory, 5000) == []
    assert laboratory.drops() == {}
    assert all_of(laboratory) == []


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_without_a_scheduler_no_server_is_found_but_templates_still_decide(
    protocol: Protocol,
) -> None:
    laboratory = Laboratory()
    service = laboratory.service(protocol=protocol, persistence=300)
    laboratory.server(service)
    send = tcp if protocol is Protocol.TCP else udp
    send(laboratory, 80)
    laboratory.director.services.edit(service.identity, replace(service.options, scheduler="none"))
    assert to(send(laboratory, 80, source=40001)) == S4
    (left,) = send(laboratory, 80, client="198.51.100.99")
    assert left.side == "client"


def test_the_client_is_told_that_there_is_no_server_in_both_families() -> None:
    for client, virtual, at, error in ((C4, V4, 20, b"\x03\x03"), (C6, V6, 40, b"\x01\x04")):
        laboratory = Laboratory()
        laboratory.service(virtual)
        (left,) = laboratory.send("client", packets.tcp(client, 1, virtual, 80, SYN))
        assert (left.side, left.packet[at : at + 2]) == ("client", error)


# Bypass


def test_what_finds_no_server_of_a_mark_goes_on_to_where_it_was_sent() -> None:
    laboratory, _ = marked()
    laboratory.set(cache_bypass=1)
    for flags in (SYN, ACK):
        (left,) = laboratory.send("client", packets.tcp(C4, 1, "192.0.2.99", 80, flags, ttl=9))
        assert left.packet == packets.tcp(C4, 1, "192.0.2.99", 80, flags, ttl=8)
    (connection,) = all_of(laboratory)
    assert connection.binding.method is ForwardMethod.BYPASS
    assert connection.record().server == bytes(4)
    assert connection.state == TcpState.ESTABLISHED
    assert not connection.flags & ConnectionFlag.NO_OUTPUT
    assert laboratory.miscounted() == []
    laboratory.sleep(HOUR)
    assert all_of(laboratory) == []


@pytest.mark.parametrize("flags", [FIN | ACK])
def test_the_states_of_a_bypassed_connection_are_those_of_the_whole(flags: int) -> None:
    laboratory, _ = marked()
    laboratory.set(cache_bypass=1)
    for each in (SYN, ACK, flags):
        laboratory.send("client", packets.tcp(C4, 1, "192.0.2.99", 80, each))
    (connection,) = all_of(laboratory)
    assert connection.state == TcpState.CLOSE_WAIT


def test_a_single_bypassed_datagram_leaves_nothing() -> None:
    laboratory, _ = marked(ServiceOptions("rr", one_packet=True))
    laboratory.set(cache_bypass=1)
    assert len(laboratory.send("client", packets.udp(C4, 1, "192.0.2.99", 80))) == 1
    assert all_of(laboratory) == []


def test_only_packets_of_marks_to_other_single_hosts_are_bypassed() -> None:
    laboratory, _ = marked()
    (left,) = laboratory.send("client", packets.tcp(C4, 1, "192.0.2.99", 80, SYN))
    assert left.packet[20:22] == b"\x03\x03"  # not set
    laboratory.set(cache_bypass=1)
    (left,) = tcp(laboratory, 80)  # the host's own address
    assert left.packet[20:22] == b"\x03\x03"
    laboratory = Laboratory(vips=())
    laboratory.set(cache_bypass=1)
    laboratory.service()
    (left,) = tcp(laboratory, 80)  # of no mark
    assert left.packet[20:22] == b"\x03\x03"
    assert all_of(laboratory) == []


# Marks


def test_a_marks_servers_get_the_packets_port_or_their_own() -> None:
    laboratory, identity = marked()
    for address, port in ((S4, 0), (OTHER, 8080)):
        laboratory.director.services.add_server(
            identity, parse_address(address), port, ServerOptions(NAT)
        )
    ports = {}
    for source in (1, 2):
        (left,) = tcp(laboratory, 443, source=source)
        ports[to([left])] = int.from_bytes(left.packet[22:24])
    assert ports == {S4: 443, OTHER: 8080}


def test_a_reply_from_a_marks_server_is_translated_back_to_each_virtual_end() -> None:
    laboratory, identity = marked()
    laboratory.director.services.add_server(identity, parse_address(S4), 0, ServerOptions(NAT))
    for virtual, port in ((V4, 80), ("192.0.2.99", 25)):
        laboratory.send("client", packets.tcp(C4, port, virtual, port, SYN))
        (left,) = laboratory.send("server", packets.tcp(S4, port, C4, port, SYN | ACK))
        assert left.packet == packets.tcp(virtual, port, C4, port, SYN | ACK, ttl=63)


# Port reuse and dead servers


def closed(**settings: int) -> tuple[Laboratory, VirtualService]:
    """A connection in CLOSE, and a second server that would be next."""
    laboratory = Laboratory()
    laboratory.set(**settings)
    service = laboratory.service()
    laboratory.server(service)
    for flags in (SYN, ACK, RST):
        laboratory.send("client", packets.tcp(C4, 40000, V4, 80, flags))
    laboratory.server(service, OTHER)
    return laboratory, service


@pytest.mark.parametrize(("mode", "server"), [(0, S4), (1, OTHER), (2, OTHER), (3, OTHER)])
def test_the_mode_of_reuse_decides_about_a_syn_on_a_closed_connection(
    mode: int, server: str
) -> None:
    laboratory, _ = closed(conn_reuse_mode=mode)
    assert to(tcp(laboratory, 80)) == server
    assert len(all_of(laboratory)) == 1


@pytest.mark.parametrize(
    ("mode", "method", "reused"),
    [(1, DR, False), (2, DR, True), (3, DR, True), (3, NAT, False)],
)
def test_one_in_fin_wait_gives_way_only_where_replies_pass_elsewhere(
    mode: int, method: ForwardMethod, reused: bool
) -> None:
    laboratory = Laboratory()
    laboratory.set(conn_reuse_mode=mode)
    service = laboratory.service()
    laboratory.server(service, method=method)
    for flags in (SYN, ACK):
        laboratory.send("client", packets.tcp(C4, 40000, V4, 80, flags))
    if method is DR:
        laboratory.send("client", packets.tcp(C4, 40000, V4, 80, FIN | ACK))
    else:
        laboratory.send("server", packets.tcp(S4, 80, C4, 40000, FIN | ACK))
    (connection,) = all_of(laboratory)
    assert connection.state == TcpState.FIN_WAIT
    laboratory.server(service, OTHER, method=method)
    assert to(tcp(laboratory, 80)) == (OTHER if reused else S4)


def test_a_connection_of_a_template_does_not_give_way() -> None:
    laboratory, service = persistent()
    laboratory.server(service)
    for flags in (SYN, ACK, RST):
        laboratory.send("client", packets.tcp(C4, 40000, V4, 80, flags))
    (before,) = connections(laboratory)
    tcp(laboratory, 80)
    assert connections(laboratory) == [before]


def test_a_syn_leaves_a_server_of_weight_zero_only_if_the_setting_says_so() -> None:
    for setting, expected in ((0, S4), (1, OTHER)):
        laboratory = Laboratory()
        laboratory.set(expire_nodest_conn=setting)
        service = laboratory.service()
        server = laboratory.server(service)
        tcp(laboratory, 80)
        laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))
        laboratory.server(service, OTHER)
        laboratory.edit(server, 0)
        assert to(laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))) == S4
        assert to(tcp(laboratory, 80)) == expected
        assert laboratory.miscounted() == []


def test_packets_of_a_removed_server_open_anew_if_the_setting_says_so() -> None:
    laboratory = Laboratory()
    laboratory.set(expire_nodest_conn=1)
    service = laboratory.service()
    server = laboratory.server(service)
    tcp(laboratory, 80)
    laboratory.server(service, OTHER)
    laboratory.remove(server)
    (left,) = laboratory.send("client", packets.tcp(C4, 40000, V4, 80, ACK))
    assert left.side == "client"
    assert laboratory.drops() == {Reason.RESET: 1}
    assert all_of(laboratory) == []
    assert to(tcp(laboratory, 80)) == OTHER


def test_connections_of_a_removed_server_are_swept_if_the_setting_says_so() -> None:
    laboratory, service = persistent()
    laboratory.set(expire_nodest_conn=1)
    gone, _ = two_servers(laboratory, service)
    for number in range(40):
        tcp(laboratory, 80, client=f"198.51.100.{number + 1}")
    laboratory.sleep(1.5)
    assert len(all_of(laboratory)) == 80
    laboratory.remove(gone)
    laboratory.sleep(1.5)
    assert {each.server for each in all_of(laboratory)} == set(service.servers)
    assert len(all_of(laboratory)) == 40
    assert gone.idle
    assert laboratory.miscounted() == []


def test_connections_of_a_removed_server_stay_if_it_does_not() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    server = laboratory.server(service)
    tcp(laboratory, 80)
    laboratory.remove(server)
    laboratory.sleep(1.5)
    laboratory.sleep(1.5)
    assert len(all_of(laboratory)) == 1
