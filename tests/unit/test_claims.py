"""What is taken from the host, and that rules and predicate say the same about it."""

import pytest

from lvsha.datapath.claims import Claims, claims_of, filter_addresses, has_local_server
from lvsha.datapath.flow import Frame
from lvsha.datapath.marks import MarkRule, whole
from lvsha.datapath.network import AddressChange
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.model import ForwardMethod, Protocol, parse_address
from tests import packets
from tests.laboratory import C4, C6, CLIENT, DR, NAT, S4, S6, V4, V6, Laboratory

TCP, UDP, SCTP, ESP, AH = (
    Protocol.TCP,
    Protocol.UDP,
    Protocol.SCTP,
    Protocol.ESP,
    Protocol.AH,
)
OTHER = "192.0.2.22"


def end(protocol: int, address: str, port: int) -> bytes:
    return bytes((protocol,)) + parse_address(address) + port.to_bytes(2)


def all_of(protocol: int, address: str) -> bytes:
    return bytes((protocol,)) + parse_address(address)


def marked(laboratory: Laboratory, *rules: MarkRule, port: int = 0, persistence: int = 0) -> None:
    """A service for mark 1 with one NAT server, and rules that give marks."""
    laboratory.director.marks.set(rules)
    identity = ServiceIdentity(4, TCP, mark=1)
    services = laboratory.director.services
    services.add(identity, ServiceOptions("rr", persistence=persistence))
    services.add_server(identity, parse_address(S4), port, ServerOptions(ForwardMethod.NAT))


def takes(laboratory: Laboratory, packet: bytes) -> bool:
    claims, director = claims_of(laboratory.director), laboratory.director
    frame = Frame()
    frame.load(packets.ethernet(packet))
    return claims.takes(frame, director.network.is_local)


def test_a_service_and_its_nat_server_are_claimed_by_address_and_port() -> None:
    laboratory = Laboratory()
    for address, server in ((V4, S4), (V6, S6)):
        for protocol in (TCP, UDP, SCTP):
            laboratory.server(laboratory.service(address, 80, protocol=protocol), server, 8080)
    claims = claims_of(laboratory.director)
    assert claims.services == {end(p, v, 80) for p in (TCP, UDP, SCTP) for v in (V4, V6)}
    assert claims.servers == {end(p, s, 8080) for p in (TCP, UDP, SCTP) for s in (S4, S6)}
    assert not claims.whole_services | claims.whole_servers | claims.ftp | claims.passing
    assert not claims.too_wide
    assert filter_addresses(claims) == (
        {parse_address(V4), parse_address(V6)},
        {parse_address(S4), parse_address(S6)},
    )


def test_of_direct_routing_the_replies_are_looked_at_but_not_taken() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(), method=DR)
    claims = claims_of(laboratory.director)
    assert claims.servers == frozenset()
    assert filter_addresses(claims) == ({parse_address(V4)}, {parse_address(V4)})
    assert not takes(laboratory, packets.tcp(V4, 80, C4, 5000))


def test_a_service_for_all_ports_claims_them_all_and_its_servers() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(port=0, persistence=60), port=0)
    claims = claims_of(laboratory.director)
    assert claims.whole_services == {all_of(TCP, V4)}
    assert claims.whole_servers == {all_of(TCP, S4)}
    assert claims.too_wide
    assert takes(laboratory, packets.tcp(C4, 1, V4, 9))
    assert takes(laboratory, packets.tcp(S4, 9, C4, 1))
    assert not takes(laboratory, packets.udp(C4, 1, V4, 9))
    # What the server says to this host is the host's.
    assert not takes(laboratory, packets.tcp(S4, 9, "10.1.0.1", 1))


@pytest.mark.parametrize(
    ("persistence", "method", "claimed"),
    [(0, NAT, True), (60, NAT, True), (60, DR, True), (0, DR, False)],
)
def test_ftp_claims_the_ports_of_its_data_connections(
    persistence: int, method: ForwardMethod, claimed: bool
) -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(port=21, persistence=persistence), method=method)
    for port in (20, 1024, 65535):
        assert takes(laboratory, packets.tcp(C4, 5000, V4, port)) is claimed
    for port in (19, 22, 80, 1023):
        assert not takes(laboratory, packets.tcp(C4, 5000, V4, port))
    assert not takes(laboratory, packets.udp(C4, 5000, V4, 2000))
    for port in (20, 21, 40_000):
        assert takes(laboratory, packets.tcp(S4, port, C4, 5000)) is (method is NAT)


@pytest.mark.parametrize("protocol", [ESP, AH])
def test_ah_and_esp_are_claimed_where_their_key_exchange_is(protocol: Protocol) -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(port=500, protocol=UDP))
    laboratory.service(OTHER, port=501, protocol=UDP)
    assert takes(laboratory, packets.ip(C4, V4, protocol, bytes(24)))
    assert takes(laboratory, packets.ip(S4, C4, protocol, bytes(24)))
    assert not takes(laboratory, packets.ip(C4, OTHER, protocol, bytes(24)))
    assert claims_of(laboratory.director).too_wide


def test_marks_decide_in_their_order_and_only_with_a_service() -> None:
    laboratory = Laboratory()
    net = parse_address("192.0.2.0"), 24
    marked(
        laboratory,
        MarkRule(9, whole(parse_address(V4)), protocol=TCP, ports=((90, 99),)),
        MarkRule(1, net, (parse_address(C4), 32), TCP, ((80, 99),)),
        MarkRule(9, net),
    )
    assert takes(laboratory, packets.tcp(C4, 5000, OTHER, 95))
    assert takes(laboratory, packets.tcp(C4, 5000, V4, 80))
    assert not takes(laboratory, packets.tcp(C4, 5000, V4, 95))
    assert not takes(laboratory, packets.tcp("198.51.100.72", 5000, V4, 80))
    assert not takes(laboratory, packets.udp(C4, 5000, V4, 80))
    assert takes(laboratory, packets.tcp(S4, 80, C4, 5000))
    assert not takes(laboratory, packets.udp(S4, 80, C4, 5000))
    assert filter_addresses(claims_of(laboratory.director)) is None


def test_marks_of_single_addresses_leave_a_filter_by_address() -> None:
    laboratory = Laboratory()
    marked(laboratory, *(MarkRule(1, whole(parse_address(v)), protocol=UDP) for v in (V4, OTHER)))
    found = filter_addresses(claims_of(laboratory.director))
    assert found == ({parse_address(V4), parse_address(OTHER)}, {parse_address(S4)})
    assert takes(laboratory, packets.ip(C4, V4, ESP, bytes(24)))
    assert not takes(laboratory, packets.tcp(C4, 5000, V4, 80))


@pytest.mark.parametrize(("port", "persistence"), [(0, 0), (80, 60)])
def test_a_marks_server_claims_all_ports_where_it_keeps_those_of_packets(
    port: int, persistence: int
) -> None:
    laboratory = Laboratory()
    rule = MarkRule(1, whole(parse_address(V4)), protocol=TCP, ports=((80, 81),))
    marked(laboratory, rule, port=port, persistence=persistence)
    assert takes(laboratory, packets.tcp(S4, 81, C4, 5000))


def test_a_marks_ftp_service_claims_data_connections() -> None:
    laboratory = Laboratory()
    marked(laboratory, MarkRule(1, whole(parse_address(V4)), protocol=TCP, ports=((21, 21),)))
    assert takes(laboratory, packets.tcp(C4, 5000, V4, 40_000))
    assert not takes(laboratory, packets.tcp(C4, 5000, V4, 80))


def test_servers_on_this_host_are_told_apart() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    laboratory.server(service, "10.1.0.1", 8080)
    laboratory.server(service, "127.0.0.1", 8080)
    laboratory.server(service, S4, 8080)
    director = laboratory.director
    claims = claims_of(director)
    assert claims.local_servers == {end(TCP, "10.1.0.1", 8080)}
    assert has_local_server(claims, director.network.is_local)
    director.learn(AddressChange(CLIENT, parse_address(S4), present=True))
    assert end(TCP, S4, 8080) in claims_of(director).local_servers


def test_icmp_and_what_has_no_ports_is_never_taken() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service())
    assert not takes(laboratory, packets.icmp(C4, V4, 8, 0, b""))
    frame = Frame()
    frame.load(packets.ethernet(packets.tcp(C6, 1, V6, 80)))
    frame.load(packets.ethernet(packets.ip(C4, V4, 112, bytes(20))))
    assert not claims_of(laboratory.director).takes(frame, lambda _: False)
    assert not Claims().takes(Frame(), lambda _: False)


def test_ends_of_removed_servers_are_claimed_while_they_have_connections() -> None:
    laboratory = Laboratory()
    service = laboratory.service(V4, 80)
    laboratory.server(service, S4, 8080)
    laboratory.send("client", packets.tcp(C4, 4000, V4, 80, packets.SYN))
    before = claims_of(laboratory.director)
    laboratory.director.services.delete(service.identity)
    claims = claims_of(laboratory.director)
    assert (claims.services, claims.servers) == (before.services, before.servers)
    assert (claims.removed, claims.too_wide) == (True, True)
    assert takes(laboratory, packets.tcp(C4, 4000, V4, 80, packets.ACK))
    assert not claims_of(laboratory.director, removed=False).services
    laboratory.sleep(200)  # SYN_RECV lasts 60 s
    assert claims_of(laboratory.director) == Claims()


def test_a_removed_server_of_a_mark_is_claimed_beside_a_listed_one() -> None:
    laboratory = Laboratory()
    marked(laboratory, MarkRule(1, whole(parse_address(V4)), protocol=TCP), port=80)
    laboratory.send("client", packets.tcp(C4, 4000, V4, 80, packets.SYN))
    (service,) = laboratory.director.services
    (server,) = service.servers
    laboratory.remove(server)
    claims = claims_of(laboratory.director)
    assert claims.servers == {end(TCP, S4, 80)}
    assert takes(laboratory, packets.tcp(S4, 80, C4, 4000, packets.ACK))
