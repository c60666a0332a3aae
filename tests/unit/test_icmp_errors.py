import struct

import pytest

from lvsha.datapath import icmp_errors
from lvsha.datapath.flow import Frame
from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType, encapsulate
from lvsha.model import connection_key
from lvsha.wire import icmp
from tests import packets
from tests.reader import dissect, faults

C4, V4, S4 = "198.51.100.7", "192.0.2.1", "10.1.0.2"
C6, V6, S6 = "2001:db8::7", "2001:db8:f::1", "fd00::2"
FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])


def frame(packet: bytes, vnet: bytes = packets.NO_VNET) -> Frame:
    made = Frame()
    made.load(packets.ethernet(packet), vnet)
    return made


def error(source: str, there: str, quote: bytes, *, rest: int = 0) -> bytes:
    ipv6 = ":" in source
    return packets.icmp(source, there, 1 if ipv6 else 3, 4 if ipv6 else 3, quote, rest=rest)


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [(C4, k, k in {3, 4, 11}) for k in (0, 3, 4, 5, 8, 11, 12)]
    + [(C6, k, k < 128) for k in (1, 2, 3, 4, 127, 128, 129, 135)],
)
def test_errors_are_told_from_other_messages(source: str, kind: int, expected: bool) -> None:
    there = V6 if ":" in source else V4
    assert icmp_errors.is_error(frame(packets.icmp(source, there, kind, 0, bytes(8)))) == expected


@FAMILIES
def test_a_quoted_reply_belongs_to_the_request_and_a_quoted_request_to_the_reply(
    client: str, vip: str, server: str
) -> None:
    quoted = packets.tcp(vip, 80, client, 40000)
    found = icmp_errors.related_key(frame(error(client, vip, quoted)))
    assert found == connection_key(6, packets.address(client), 40000, packets.address(vip), 80)
    quoted = packets.udp(client, 40000, server, 8080)
    found = icmp_errors.related_key(frame(error(server, client, quoted)))
    assert found == connection_key(
        17, packets.address(server), 8080, packets.address(client), 40000
    )


@FAMILIES
def test_a_quote_without_ports_belongs_to_nothing(client: str, vip: str, server: str) -> None:
    quoted = packets.tcp(vip, 80, client, 40000)
    l4 = 40 if ":" in vip else 20
    for length in range(l4 + 4):
        made = frame(error(client, vip, quoted[:length]))
        assert icmp_errors.related_key(made) is None
        assert icmp_errors.quoted_key(made) is None
    made = frame(error(client, vip, quoted[: l4 + 4]))
    assert icmp_errors.related_key(made) is not None
    translated = icmp_errors.translate(made, packets.address(server), 8080, to_server=True)
    assert faults(translated) == []
    assert translated[-4:] == (8080).to_bytes(2) + (40000).to_bytes(2)


@pytest.mark.parametrize(
    "quoted",
    [
        packets.ip(V4, C4, 47, bytes(20)),
        packets.ip(V4, C4, 6, bytes(20), fragment=5),
        b"\x65" + packets.udp(V4, 80, C4, 1)[1:],
        b"\x44" + packets.udp(V4, 80, C4, 1)[1:],
        b"\x4f" + packets.udp(V4, 80, C4, 1)[1:],
    ],
    ids=["GRE", "a later fragment", "version 6", "a short header", "a long header"],
)
def test_a_quote_that_is_no_packet_of_a_connection_belongs_to_nothing(quoted: bytes) -> None:
    assert icmp_errors.related_key(frame(error(C4, V4, quoted))) is None


def test_extension_headers_in_a_quote_are_walked_over() -> None:
    inner = bytes((17, 0)) + bytes(6) + packets.udp_datagram(V6, 53, C6, 4000)
    found = icmp_errors.related_key(frame(error(C6, V6, packets.ip(V6, C6, 60, inner))))
    assert found == connection_key(17, packets.address(C6), 4000, packets.address(V6), 53)


@FAMILIES
def test_a_wrong_checksum_is_noticed_unless_the_kernel_vouches(
    client: str, vip: str, server: str
) -> None:
    packet = bytearray(error(client, vip, packets.udp(vip, 53, client, 1)))
    assert icmp_errors.checksum_is_right(frame(bytes(packet)))
    packet[-1] ^= 1
    assert not icmp_errors.checksum_is_right(frame(bytes(packet)))
    for flags in (b"\x01", b"\x02"):
        assert icmp_errors.checksum_is_right(frame(bytes(packet), flags + bytes(9)))


@FAMILIES
@pytest.mark.parametrize("options", [b"", b"\x01\x01\x01\x00"])
def test_an_error_to_the_server_speaks_of_the_servers_address(
    client: str, vip: str, server: str, options: bytes
) -> None:
    reply = packets.tcp(vip, 80, client, 40000, ip_options=b"" if ":" in vip else options)
    made = frame(error(client, vip, reply, rest=1400))
    translated = icmp_errors.translate(made, packets.address(server), 8080, to_server=True)
    read = dissect(translated)
    assert faults(translated) == []
    assert (read.src, read.dst) == (client, server)
    quote = dissect(translated[(40 if ":" in vip else 20) + 8 :])
    assert (quote.src, quote.payload.sport) == (server, 8080)
    assert (quote.dst, quote.payload.dport) == (client, 40000)
    assert int.from_bytes(translated[(44 if ":" in vip else 24) :][:4]) == 1400
    if ":" not in vip:
        assert [fault.split(".")[0] for fault in faults(bytes(quote))] == ["TCP"]


@FAMILIES
def test_an_error_to_the_client_comes_from_and_speaks_of_the_virtual_address(
    client: str, vip: str, server: str
) -> None:
    made = frame(error(server, client, packets.udp(client, 4000, server, 5353)))
    translated = icmp_errors.translate(made, packets.address(vip), 53, to_server=False)
    read = dissect(translated)
    assert faults(translated) == []
    assert (read.src, read.dst) == (vip, client)
    quote = dissect(translated[(40 if ":" in vip else 20) + 8 :])
    assert (quote.dst, quote.payload.dport, quote.payload.sport) == (vip, 53, 4000)


@FAMILIES
def test_an_error_about_sctp_belongs_to_its_association(client: str, vip: str, server: str) -> None:
    chunk = struct.pack("!HHII", 80, 40000, 7, 0)
    made = frame(error(client, vip, packets.ip(vip, client, 132, chunk)))
    expected = connection_key(132, packets.address(client), 40000, packets.address(vip), 80)
    assert icmp_errors.related_key(made) == icmp_errors.quoted_key(made) == expected
    translated = icmp_errors.translate(made, packets.address(server), 8080, to_server=True)
    assert faults(translated) == []
    assert translated[-12:] == struct.pack("!HHII", 8080, 40000, 7, 0)


@FAMILIES
@pytest.mark.parametrize("protocol", [50, 51])
@pytest.mark.parametrize("fragment", [0, 100])
def test_an_error_about_ah_or_esp_belongs_to_the_key_exchange_and_opens_nothing(
    client: str, vip: str, server: str, protocol: int, fragment: int
) -> None:
    quoted = packets.ip(vip, client, protocol, bytes(8), fragment=fragment)
    if ":" in vip and fragment:
        header = bytes((protocol, 0)) + (fragment * 8).to_bytes(2) + bytes(4)
        quoted = packets.ip(vip, client, 44, header + bytes(8))
    made = frame(error(client, vip, quoted))
    expected = connection_key(17, packets.address(client), 500, packets.address(vip), 500)
    assert icmp_errors.related_key(made) == expected
    assert icmp_errors.quoted_key(made) is None
    translated = icmp_errors.translate(made, packets.address(server), 500, to_server=True)
    assert faults(translated) == []
    quote = translated[(40 if ":" in vip else 20) + 8 :]
    assert (dissect(quote).src, dissect(quote).dst) == (server, client)
    assert quote[(40 if ":" in vip else 20) :] == quoted[(40 if ":" in vip else 20) :]


@FAMILIES
def test_a_request_is_scheduled_for_an_error_as_if_it_came_itself(
    client: str, vip: str, server: str
) -> None:
    made = frame(error(client, vip, packets.udp(vip, 53, client, 4000)))
    request = frame(packets.udp(client, 4000, vip, 53))
    assert icmp_errors.quoted_key(made) == request.key


@pytest.mark.parametrize(
    ("offset", "more", "related"), [(0, 1, True), (0, 0, True), (8, 1, False), (8, 0, False)]
)
def test_a_first_fragment_of_ipv6_is_as_good_as_the_whole(
    offset: int, more: int, related: bool
) -> None:
    for before in (b"", bytes((17, 0)) + bytes(6)):
        header = bytes((60 if before else 17, 0)) + (offset | more).to_bytes(2) + bytes(4)
        inner = header + before + packets.udp_datagram(V6, 53, C6, 4000)
        made = frame(error(C6, V6, packets.ip(V6, C6, 44, inner)))
        assert (icmp_errors.related_key(made) is not None) == related
    cut_short = frame(error(C6, V6, packets.ip(V6, C6, 44, bytes(7))))
    assert icmp_errors.related_key(cut_short) is None


TUNNELS = [
    Tunnel(),
    Tunnel(TunnelType.GUE, 6080),
    Tunnel(TunnelType.GUE, 6080, TunnelChecksum.CHECKSUM),
    Tunnel(TunnelType.GRE),
    Tunnel(TunnelType.GRE, 0, TunnelChecksum.CHECKSUM),
]
EVERY_TUNNEL = pytest.mark.parametrize("tunnel", TUNNELS, ids=Tunnel.describe)
OUTERS = pytest.mark.parametrize(
    ("here", "there", "router"),
    [("10.1.0.1", S4, "10.1.0.51"), ("fd00::1", S6, "fd00::51")],
    ids=["outer-v4", "outer-v6"],
)


def tunnel_packet(inner: bytes, tunnel: Tunnel, here: str, there: str) -> bytes:
    return encapsulate(inner, tunnel, packets.address(here), packets.address(there), 1)


@FAMILIES
@EVERY_TUNNEL
@OUTERS
def test_an_error_about_a_tunnel_packet_leads_to_the_request_in_it(
    client: str, vip: str, server: str, tunnel: Tunnel, here: str, there: str, router: str
) -> None:
    inner = packets.tcp(client, 40000, vip, 80)
    outer = tunnel_packet(inner, tunnel, here, there)
    made = frame(error(router, here, outer))
    quoted = icmp_errors.tunnelled(made)
    assert quoted is not None
    assert (quoted.type, quoted.port) == (tunnel.type, tunnel.port)
    assert (quoted.source, quoted.destination) == (packets.address(here), packets.address(there))
    assert bytes(made.view[quoted.inner : made.end]) == inner
    assert quoted.inner_family == (6 if ":" in client else 4)
    assert icmp_errors.original_key(made, quoted) == frame(inner).key


@EVERY_TUNNEL
@OUTERS
def test_a_quoted_tunnel_packet_is_read_only_as_far_as_it_goes(
    tunnel: Tunnel, here: str, there: str, router: str
) -> None:
    inner = packets.tcp(C4, 40000, V4, 80)
    outer = tunnel_packet(inner, tunnel, here, there)
    before = len(outer) - len(inner)
    for length in range(len(outer)):
        made = frame(error(router, here, outer[:length]))
        quoted = icmp_errors.tunnelled(made)
        assert (quoted is not None) == (length >= before + 20)
        if quoted is not None:
            found = icmp_errors.original_key(made, quoted)
            assert (found is not None) == (length >= before + 24)


GUE4 = b"\x17\xc0\x17\xc0" + bytes(4)
INNER = packets.udp(C4, 4000, V4, 53)


@pytest.mark.parametrize(
    ("protocol", "payload", "inner"),
    [
        (4, INNER, 0),
        (41, INNER, None),
        (4, packets.udp(C6, 1, V6, 2), None),
        (17, GUE4 + b"\x00\x04\x00\x00" + INNER, 12),
        (17, GUE4 + b"\x02\x04\x00\x01" + bytes(8) + INNER, 20),
        (17, GUE4 + b"\x00\x29\x00\x00" + INNER, None),
        (17, GUE4 + b"\x00\x06\x00\x00" + INNER, None),
        (17, GUE4 + b"\x20\x04\x00\x00" + INNER, None),
        (17, GUE4 + b"\x40\x04\x00\x00" + INNER, None),
        (17, GUE4 + b"\x80\x04\x00\x00" + INNER, None),
        (17, GUE4 + b"\x1f\x04\x00\x00" + INNER, None),
        (17, GUE4 + INNER, None),
        (47, b"\x00\x00\x08\x00" + INNER, 4),
        (47, b"\x80\x00\x08\x00" + bytes(4) + INNER, 8),
        (47, b"\x00\x00\x86\xdd" + INNER, None),
        (47, b"\x00\x00\x00\x04" + INNER, None),
        (47, b"\x20\x00\x08\x00" + bytes(4) + INNER, None),
        (47, b"\x00\x01\x08\x00" + INNER, None),
        (6, INNER, None),
    ],
    ids=[
        "IP in IP",
        "IPv4 that claims to be IPv6",
        "IPv6 that claims to be IPv4",
        "GUE",
        "GUE with option words",
        "GUE of another family than it says",
        "GUE with TCP in it",
        "a GUE control message",
        "GUE version 1",
        "GUE version 2",
        "GUE with more options than there are",
        "a packet without a header of GUE",
        "GRE",
        "GRE with checksum",
        "GRE of another family than it says",
        "GRE with something else in it",
        "GRE with a key",
        "GRE version 1",
        "TCP",
    ],
)
def test_a_tunnel_is_told_by_its_header(protocol: int, payload: bytes, inner: int | None) -> None:
    made = frame(error("10.1.0.51", "10.1.0.1", packets.ip("10.1.0.1", S4, protocol, payload)))
    quoted = icmp_errors.tunnelled(made)
    if inner is None:
        assert quoted is None
    else:
        assert quoted is not None
        assert quoted.inner == made.l4 + 8 + 20 + inner


def test_a_later_fragment_of_a_tunnel_packet_leads_nowhere() -> None:
    quoted = packets.ip("10.1.0.1", S4, 4, INNER, fragment=8)
    assert icmp_errors.tunnelled(frame(error("10.1.0.51", "10.1.0.1", quoted))) is None
    first = packets.ip("10.1.0.1", S4, 4, INNER, fragment=0x2000)
    assert icmp_errors.tunnelled(frame(error("10.1.0.51", "10.1.0.1", first))) is not None


@FAMILIES
@OUTERS
def test_an_error_is_relayed_as_it_is_within_a_family_and_as_unreachable_across(
    client: str, vip: str, server: str, here: str, there: str, router: str
) -> None:
    outer = tunnel_packet(packets.udp(client, 1, vip, 2), Tunnel(), here, there)
    kind, code = (3, 1) if ":" in router else (11, 1)
    made = frame(packets.icmp(router, here, kind, code, outer))
    quoted = icmp_errors.tunnelled(made)
    assert quoted is not None
    found = icmp_errors.relayed(made, quoted)
    if (":" in client) != (":" in router):
        assert found == icmp.HOST_UNREACHABLE
    else:
        assert (found.v6 if ":" in router else found.v4) == (kind, code)


def test_only_an_error_that_tells_an_mtu_has_one() -> None:
    for packet, expected in (
        (packets.icmp(C4, V4, 3, 4, bytes(28), rest=1300), 1300),
        (packets.icmp(C4, V4, 3, 1, bytes(28), rest=1300), None),
        (packets.icmp(C6, V6, 2, 0, bytes(48), rest=1400), 1400),
        (packets.icmp(C6, V6, 1, 0, bytes(48), rest=1400), None),
    ):
        assert icmp_errors.told_mtu(frame(packet)) == expected
