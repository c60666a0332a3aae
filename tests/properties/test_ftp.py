"""FTP: nothing raises, what is written is read again, and a text cut short misleads nobody."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.ftp import (
    ActiveAsked,
    FtpMode,
    PassiveAnswered,
    PassiveAsked,
    from_client,
    from_server,
    passive_text,
)

families = st.sampled_from([4, 6])
ports = st.integers(1, 0xFFFF)
addresses4 = st.binary(min_size=4, max_size=4)
addresses6 = st.binary(min_size=16, max_size=16)
servers = addresses4 | addresses6
WORDS = (
    b"PASV", b"EPSV", b"PORT", b"EPRT", b"227", b"229", b" ", b"\r", b"\n", b"\r\n", b"(", b")",
    b"|", b"||", b"|||", b"|1|", b"|2|", b",", b"0", b"1", b"9", b"255", b"256", b"65535", b"65536",
    b"10,1,0,31,200,10", b"10.1.0.31", b"fd00::31", b":", b"-", b"ALL", b"!", b"\xff", b"\x00",
)  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), max_size=16).map(b"".join) | st.binary(max_size=80)


def active_command(address: bytes, port: int, delimiter: bytes | None) -> bytes:
    """PORT, or EPRT with this delimiter."""
    if delimiter is None:
        return b"PORT %d,%d,%d,%d,%d,%d\r\n" % (*address, port >> 8, port & 0xFF)
    fields = (
        b"1" if len(address) == 4 else b"2",
        str(ipaddress.ip_address(address)).encode(),
        str(port).encode(),
    )
    return b"EPRT " + delimiter + delimiter.join(fields) + delimiter + b"\r\n"


@given(texts, families)
def test_any_payload_of_a_client_is_read_or_left_alone(payload: bytes, family: int) -> None:
    match from_client(payload, family):
        case ActiveAsked(address, port):
            assert len(address) == (4 if family == 4 else 16)
            assert 0 < port <= 0xFFFF
            assert payload[:4].upper() in {b"PORT", b"EPRT"}
        case PassiveAsked(mode):
            assert mode.name.encode() in payload.upper()
            assert (family, mode) != (6, FtpMode.PASV)


@given(
    texts, st.sampled_from([b"", b"227 ", b"229 (", b"229 (|||"]), st.sampled_from(FtpMode), servers
)
def test_any_payload_of_a_server_is_read_or_left_alone(
    rest: bytes, start: bytes, mode: FtpMode, server: bytes
) -> None:
    payload = start + rest
    answered = from_server(payload, mode, server)
    if answered is None:
        return
    assert payload[:4] == {FtpMode.PASV: b"227 ", FtpMode.EPSV: b"229 "}[mode]
    assert len(answered.address) == len(server)
    assert 0 < answered.port <= 0xFFFF
    assert 4 <= answered.start < answered.end <= len(payload)


@given(addresses4, ports, st.sampled_from([None, b"|", b"!", b"~", b",", b"/", b"x"]))
def test_an_ipv4_client_is_understood(address: bytes, port: int, delimiter: bytes | None) -> None:
    assert from_client(active_command(address, port, delimiter), 4) == ActiveAsked(address, port)


@given(addresses6, ports, st.sampled_from([b"|", b"!", b"~", b",", b"/", b"x"]))
def test_an_ipv6_client_is_understood(address: bytes, port: int, delimiter: bytes) -> None:
    assert from_client(active_command(address, port, delimiter), 6) == ActiveAsked(address, port)


@given(
    st.sampled_from([FtpMode.PASV, FtpMode.EPSV]),
    addresses4,
    ports,
    addresses4,
    ports,
    st.sampled_from([b"Entering Passive Mode (", b"ok (", b"("]),
    st.sampled_from([b")\r\n", b").\r\n", b")\n"]),
)
def test_a_rewritten_answer_leads_to_the_virtual_service_and_changes_nothing_else(
    mode: FtpMode,
    server: bytes,
    port: int,
    virtual: bytes,
    virtual_port: int,
    before: bytes,
    behind: bytes,
) -> None:
    code = b"227 " if mode is FtpMode.PASV else b"229 "
    payload = code + before + passive_text(mode, server, port) + behind
    answered = from_server(payload, mode, server)
    assert answered is not None
    assert (answered.address, answered.port) == (server, port)
    text = passive_text(mode, virtual, virtual_port)
    rewritten = payload[: answered.start] + text + payload[answered.end :]
    start = len(code + before)
    assert rewritten == code + before + text + behind
    assert from_server(rewritten, mode, virtual) == PassiveAnswered(
        virtual, virtual_port, start, start + len(text)
    )


@given(addresses4, ports, st.sampled_from([None, b"|"]), st.booleans(), st.integers(0, 100))
def test_a_text_cut_short_is_left_alone_or_means_the_same(
    address: bytes, port: int, delimiter: bytes | None, of_client: bool, kept: int
) -> None:
    if of_client:
        command = active_command(address, port, delimiter)
        assert from_client(command[:kept], 4) in {None, ActiveAsked(address, port)}
        return
    mode = FtpMode.PASV if delimiter is None else FtpMode.EPSV
    code = b"227 " if delimiter is None else b"229 "
    payload = code + b"Entering (" + passive_text(mode, address, port) + b").\r\n"
    whole = from_server(payload, mode, address)
    assert whole is not None
    assert from_server(payload[:kept], mode, address) in {None, whole}
