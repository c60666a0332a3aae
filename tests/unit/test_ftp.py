import pytest

from lvsha.datapath.ftp import (
    ActiveAsked,
    FtpMode,
    PassiveAnswered,
    PassiveAsked,
    from_client,
    from_server,
    passive_text,
)
from tests.packets import address

S4, V4, S6, V6 = "10.1.0.31", "192.0.2.61", "fd00::31", "2001:db8:f::61"
BOTH = pytest.mark.parametrize("family", [4, 6])
SIX = b"10,1,0,31,200,10"
HOSTILE_BYTES = 0x10000


@pytest.mark.parametrize(
    "payload",
    [
        b"PASV\r\n",
        b"pasv\r\n",
        b"PaSv\r\nLIST\r\n",
        b"TYPE I\r\nPASV\r\n",
        b"\xff\xf4\xff\xf2PASV\r\n",
        b"PASV\r\nEPSV\r\n",
        b"PORT 198,51,100,31,195,80\r\nPASV\r\n",
        b"EPSV 2\r\nPASV\r\n",
    ],
)
def test_a_client_asks_for_pasv_anywhere_in_its_payload(payload: bytes) -> None:
    assert from_client(payload, 4) == PassiveAsked(FtpMode.PASV)


@BOTH
@pytest.mark.parametrize(
    "payload", [b"EPSV\r\n", b"epsv\r\n", b"EPSV\r", b"TYPE I\r\nEPSV\r\nPASV\r\n"]
)
def test_a_client_asks_for_epsv_over_either_family(payload: bytes, family: int) -> None:
    assert from_client(payload, family) == PassiveAsked(FtpMode.EPSV)


def test_epsv_with_a_family_counts_for_that_family_only() -> None:
    asked = PassiveAsked(FtpMode.EPSV)
    assert from_client(b"EPSV 1\r\n", 4) == from_client(b"EPSV 2\r\n", 6) == asked
    assert from_client(b"EPSV 2\r\n", 4) is None
    assert from_client(b"EPSV 1\r\n", 6) is None


@BOTH
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"LIST\r\n",
        b"EPSV ALL\r\n",
        b"EPSV  1\r\n",
        b"EPSV 3\r\n",
        b"EPSV 12\r\n",
        b"EPSV",
        b"EPSV\n",
        b"PAS",
        b"PASV",
        b"PASV\r",
        b"PASV\n",
        b"PASV \r\n",
        b"LPSV\r\n",
    ],
)
def test_what_is_not_quite_a_passive_command_is_none(payload: bytes, family: int) -> None:
    assert from_client(payload, family) is None


def test_pasv_over_ipv6_is_none() -> None:
    assert from_client(b"PASV\r\n", 6) is None
    assert from_client(b"PASV\r\nEPSV\r\n", 6) == PassiveAsked(FtpMode.EPSV)


@pytest.mark.parametrize(
    ("payload", "endpoint"),
    [
        (b"PORT 198,51,100,31,195,80\r\n", ("198.51.100.31", 50000)),
        (b"port 198,51,100,31,195,80\r\n", ("198.51.100.31", 50000)),
        (b"PORT   198,51,100,31,195,80\n", ("198.51.100.31", 50000)),
        (b"PORT 198,051,100,031,000,001\r\nLIST\r\n", ("198.51.100.31", 1)),
        (b"PORT 0,1,2,3,255,255\r\n", ("0.1.2.3", 65535)),
        (b"PORT 203,0,113,9,0,20\r\n", ("203.0.113.9", 20)),
        (b"EPRT |1|198.51.100.31|50000|\r\n", ("198.51.100.31", 50000)),
        (b"eprt |1|198.51.100.31|1|\r\n", ("198.51.100.31", 1)),
        (b"EPRT  !1!198.51.100.31!65535!\r\n", ("198.51.100.31", 65535)),
        (b"EPRT ~1~198.51.100.31~00080~", ("198.51.100.31", 80)),
        (b"EPRT .1.198.51.100.31.50000.\r\n", ("198.51.100.31", 50000)),
    ],
)
def test_an_ipv4_client_says_where_it_waits(payload: bytes, endpoint: tuple[str, int]) -> None:
    assert from_client(payload, 4) == ActiveAsked(address(endpoint[0]), endpoint[1])


@pytest.mark.parametrize(
    ("payload", "endpoint"),
    [
        (b"EPRT |2|2001:db8::31|50000|\r\n", ("2001:db8::31", 50000)),
        (b"EPRT |2|2001:0DB8:0000:0000:0000:0000:0000:0031|1|\r\n", ("2001:db8::31", 1)),
        (b"EPRT |2|::ffff:192.0.2.1|50000|\r\n", ("::ffff:192.0.2.1", 50000)),
        (b"EPRT :2:2001:db8::31:50000:\r\n", ("2001:db8::31", 50000)),
    ],
)
def test_an_ipv6_client_says_where_it_waits(payload: bytes, endpoint: tuple[str, int]) -> None:
    assert from_client(payload, 6) == ActiveAsked(address(endpoint[0]), endpoint[1])


@BOTH
@pytest.mark.parametrize(
    "payload",
    [
        b"PORT 198,51,100,31,195\r\n",
        b"PORT 198,51,100,31,195,80",
        b"PORT 198,51,100,31,195,",
        b"PORT 198,51,100,256,195,80\r\n",
        b"PORT 198,51,100,31,195,256\r\n",
        b"PORT 198,51,100,31,0,0\r\n",
        b"PORT 198,51,100,31,0195,80\r\n",
        b"PORT 198,51,100,31,195,0800\r\n",
        b"PORT 198, 51, 100, 31, 195, 80\r\n",
        b"PORT 198.51.100.31.195.80\r\n",
        b"PORT (198,51,100,31,195,80)\r\n",
        b"PORT -198,51,100,31,195,80\r\n",
        b"PORT198,51,100,31,195,80\r\n",
        b"PORT\t198,51,100,31,195,80\r\n",
        b" PORT 198,51,100,31,195,80\r\n",
        b"NOOP\r\nPORT 198,51,100,31,195,80\r\n",
        b"PORT \r\n",
        b"PORT",
        b"EPRT |3|198.51.100.31|50000|\r\n",
        b"EPRT |1|198.51.100.31|0|\r\n",
        b"EPRT |1|198.51.100.31|65536|\r\n",
        b"EPRT |1|198.51.100.31|50000\r\n",
        b"EPRT |1|198.51.100.31|50000!\r\n",
        b"EPRT |1|198.51.100.31|-5000|\r\n",
        b"EPRT |1|198.51.100|50000|\r\n",
        b"EPRT |1|198.51.100.256|50000|\r\n",
        b"EPRT |1|2001:db8::31|50000|\r\n",
        b"EPRT |2|198.51.100.31|50000|\r\n",
        b"EPRT |2|2001:db8:::31|50000|\r\n",
        b"EPRT |2|fe80::1%eth0|50000|\r\n",
        b"EPRT |2|" + b"0" * 46 + b"|50000|\r\n",
        b"EPRT |1||50000|\r\n",
        b"EPRT |||50000|\r\n",
        b"EPRT \xa61\xa6198.51.100.31\xa650000\xa6\r\n",
        b"EPRT 711198.51.100.317500007\r\n",
        b"EPRT|1|198.51.100.31|50000|\r\n",
        b"NOOP\r\nEPRT |1|198.51.100.31|50000|\r\n",
        b"LPRT 4,4,198,51,100,31,2,195,80\r\n",
    ],
)
def test_what_is_not_quite_an_active_command_is_none(payload: bytes, family: int) -> None:
    assert from_client(payload, family) is None


def test_an_active_command_of_the_other_family_is_none() -> None:
    assert from_client(b"PORT 198,51,100,31,195,80\r\n", 6) is None
    assert from_client(b"EPRT |1|198.51.100.31|50000|\r\n", 6) is None
    assert from_client(b"EPRT |2|2001:db8::31|50000|\r\n", 4) is None


# As servers are known to write it. The first is of RFC 959 and the most common; the second is
# recommended by https://cr.yp.to/ftp/retr.html.
@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"227 Entering Passive Mode (", b")\r\n"),
        (b"227 =", b"\r\n"),
        (b"227 Entering Passive Mode (", b").\r\n"),
        (b"227 Entering Passive Mode. ", b"\r\n"),
        (b"227 Entering Passive Mode. ", b"\n"),
        (b"227 ", b"\r\n"),
        (b"227 (", b")\r\n"),
        (b"227 Data transfer will passively listen to ", b"\r\n"),
        (b"227 Entering Passive Mode( ", b").\r\n"),
        (b"227 Passive Mode OK (", b" ) \r\n150 here\r\n"),
    ],
)
def test_a_server_says_in_many_ways_where_it_waits(before: bytes, behind: bytes) -> None:
    payload = before + SIX + behind
    answered = from_server(payload, FtpMode.PASV, address("10.1.0.99"))
    assert answered == PassiveAnswered(address(S4), 51210, len(before), len(before) + len(SIX)), (
        payload
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"227",
        b"227 ",
        b"227 Entering Passive Mode. ",
        b"227 Entering Passive Mode (10,1,0,31,200,1",
        b"227 Entering Passive Mode (10,1,0,31,200)\r\n",
        b"227 Entering Passive Mode (10, 1, 0, 31, 200, 10)\r\n",
        b"227 Entering Passive Mode (10,1,0,31,200,-10)\r\n",
        b"227 Entering Passive Mode (1216,256,2,127,127,127)\r\n",
        b"227 Entering Passive Mode (10,1,0,31,200,256)\r\n",
        b"227 Entering Passive Mode (10,1,0,31,0,0)\r\n",
        b"227 Mode 2 (10,1,0,31,200,10)\r\n",
        b"227-listen socket created\r\n227 (10,1,0,31,200,10)\r\n",
        b"200 OK\r\n227 (10,1,0,31,200,10)\r\n",
        b"229 Entering Extended Passive Mode (|||51210|)\r\n",
        b"425 Possible PASV port theft.\r\n",
    ],
)
def test_what_is_not_quite_an_answer_to_pasv_is_none(payload: bytes) -> None:
    assert from_server(payload, FtpMode.PASV, address(S4)) is None


@pytest.mark.parametrize("server", [S4, S6])
@pytest.mark.parametrize(
    ("before", "text", "behind"),
    [
        (b"229 Entering Extended Passive Mode (", b"|||51210|", b")\r\n"),
        (b"229 Entering Extended Passive Mode (", b"|||51210|", b").\r\n"),
        (b"229 Entering Extended Passive Mode (", b"!!!51210!", b").\r\n"),
        (b"229 Extended Passive mode OK (", b"|||51210|", b")\r\n"),
        (b"229 Ok (", b"~~~51210~", b" )\r\n"),
        (b"229 (", b"|||51210|", b""),
        (b"229 2 of 3 (", b",,,51210,", b")"),
    ],
)
def test_an_extended_answer_takes_the_servers_address_for_granted(
    server: str, before: bytes, text: bytes, behind: bytes
) -> None:
    answered = from_server(before + text + behind, FtpMode.EPSV, address(server))
    assert answered == PassiveAnswered(address(server), 51210, len(before), len(before) + len(text))


@pytest.mark.parametrize(
    ("server", "text", "there"),
    [
        (S4, b"|1|10.1.0.32|51210|", "10.1.0.32"),
        (S6, b"|2|fd00::32|51210|", "fd00::32"),
        (S6, b"!2!FD00:0:0:0:0:0:0:32!51210!", "fd00::32"),
    ],
)
def test_an_extended_answer_may_name_an_address(server: str, text: bytes, there: str) -> None:
    payload = b"229 Entering Extended Passive Mode (" + text + b")\r\n"
    answered = from_server(payload, FtpMode.EPSV, address(server))
    assert answered is not None
    assert (answered.address, answered.port) == (address(there), 51210)
    assert payload[answered.start : answered.end] == text


@pytest.mark.parametrize("server", [S4, S6])
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"229 ",
        b"229 Entering Extended Passive Mode |||51210|\r\n",
        b"229 Entering Extended Passive Mode ( |||51210| )\r\n",
        b"229 Entering Extended Passive Mode (||| 51210 |)\r\n",
        b"229 Entering Extended Passive Mode (||51210|)\r\n",
        b"229 Entering Extended Passive Mode (|||51210)\r\n",
        b"229 Entering Extended Passive Mode (||!51210|)\r\n",
        b"229 Entering Extended Passive Mode (|||0|)\r\n",
        b"229 Entering Extended Passive Mode (|||65536|)\r\n",
        b"229 Entering Extended Passive Mode (|||512100|)\r\n",
        b"229 Entering Extended Passive Mode (|||5121",
        b"229 Entering Extended Passive Mode (|1||51210|)\r\n",
        b"229 Entering Extended Passive Mode (|1|fd00::31|51210|)\r\n",
        b"229 Entering Extended Passive Mode (|2|10.1.0.31|51210|)\r\n",
        b"229 Entering Extended Passive Mode (555512105)\r\n",
        b"229-Entering\r\n229 Extended Passive Mode (|||51210|)\r\n",
        b"227 Entering Passive Mode (10,1,0,31,200,10)\r\n",
        b"522 Network protocol not supported, use (1)\r\n",
    ],
)
def test_what_is_not_quite_an_answer_to_epsv_is_none(server: str, payload: bytes) -> None:
    assert from_server(payload, FtpMode.EPSV, address(server)) is None


def test_an_answer_is_of_the_family_of_its_connection() -> None:
    assert from_server(b"227 (10,1,0,31,200,10)\r\n", FtpMode.PASV, address(S6)) is None
    assert from_server(b"229 (|2|fd00::31|51210|)\r\n", FtpMode.EPSV, address(S4)) is None
    assert from_server(b"229 (|1|10.1.0.31|51210|)\r\n", FtpMode.EPSV, address(S6)) is None


def test_a_server_that_was_not_asked_answers_nothing() -> None:
    for payload in (b"227 (10,1,0,31,200,10)\r\n", b"229 (|||51210|)\r\n"):
        assert from_server(payload, FtpMode.ACTIVE, address(S4)) is None


def test_the_text_is_of_the_virtual_service() -> None:
    assert passive_text(FtpMode.PASV, address(V4), 51210) == b"192,0,2,61,200,10"
    assert passive_text(FtpMode.PASV, address(V4), 1) == b"192,0,2,61,0,1"
    assert passive_text(FtpMode.EPSV, address(V4), 51210) == b"|||51210|"
    assert passive_text(FtpMode.EPSV, address(V6), 1) == b"|||1|"


@pytest.mark.parametrize(
    "unit",
    [
        b"PASV\r",
        b"EPSV ",
        b"P",
        b" ",
        b"PORT ",
        b"1,,",
        b"1",
        b"|",
        b"(",
        b"(|",
        b"(||",
        b"(|||",
        b"|1|",
        b"1.1.1.1",
        b"::",
        b"\r\n",
        b"227 ",
        b"229 (",
        b"\x00",
    ],
)
def test_a_hostile_payload_costs_no_more_than_its_length(unit: bytes) -> None:
    for start in (b"", b"PORT ", b"EPRT ", b"EPRT |1|", b"227 ", b"229 ", b"229 (", b"229 (|1|"):
        payload = start + unit * (HOSTILE_BYTES // len(unit))
        for family in (4, 6):
            assert from_client(payload, family) is None
        for mode in FtpMode:
            assert from_server(payload, mode, address(S4)) is None
