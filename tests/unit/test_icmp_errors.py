import pytest

from lvsha.datapath import icmp_errors
from lvsha.datapath.flow import Frame
from lvsha.model import connection_key
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
def test_a_quote_without_eight_bytes_of_transport_belongs_to_nothing(
    client: str, vip: str, server: str
) -> None:
    quoted = packets.tcp(vip, 80, client, 40000)
    l4 = 40 if ":" in vip else 20
    for length in range(l4 + 8):
        assert icmp_errors.related_key(frame(error(client, vip, quoted[:length]))) is None
    assert icmp_errors.related_key(frame(error(client, vip, quoted[: l4 + 8]))) is not None


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
