import struct
import subprocess

import pytest
import trio

from lvsha.datapath import interception
from lvsha.datapath.interception import Endpoint, ruleset, table_changes
from lvsha.errors import HostError
from lvsha.model import Protocol, parse_address

V4, V6, S4 = map(parse_address, ("192.0.2.1", "2001:db8::1", "10.1.0.2"))
SERVICES = [
    Endpoint(Protocol.TCP, V4, 80),
    Endpoint(Protocol.UDP, V4, 53),
    Endpoint(Protocol.TCP, V6, 80),
]


def test_the_table_is_replaced_in_one_step() -> None:
    lines = ruleset(["eth0"], SERVICES, []).splitlines()
    # Adding first makes the deletion succeed where there is no table yet.
    assert lines[:3] == [
        "add table netdev lvsha",
        "delete table netdev lvsha",
        "table netdev lvsha {",
    ]
    assert lines[-1] == "}"
    assert sum(line.count("{") - line.count("}") for line in lines) == 0


def test_services_and_servers_stand_in_the_set_of_their_family() -> None:
    text = ruleset(["eth0"], SERVICES, [Endpoint(Protocol.TCP, S4, 8080)])
    sets = {part.split(" {")[0]: part for part in text.split("  set ")[1:]}
    assert "192.0.2.1 . tcp . 80, 192.0.2.1 . udp . 53" in sets["services4"]
    assert "2001:db8::1 . tcp . 80" in sets["services6"]
    assert "10.1.0.2 . tcp . 8080" in sets["servers4"]
    assert "elements" not in sets["servers6"].split("chain")[0]


def test_every_interface_has_its_chain() -> None:
    text = ruleset(["eth1", "eth0.7"], [], [])
    assert text.count("type filter hook ingress device") == 2
    assert 'device "eth0.7" priority -500' in text
    assert 'device "eth1" priority -500' in text


def test_a_server_of_two_services_stands_in_its_set_once() -> None:
    server = Endpoint(Protocol.TCP, S4, 8080)
    assert ruleset(["eth0"], [], [server, server]).count("10.1.0.2") == 1


def fake_nft(
    monkeypatch: pytest.MonkeyPatch, result: subprocess.CompletedProcess[bytes] | OSError
) -> list[bytes]:
    given: list[bytes] = []

    async def run_process(
        command: list[str], *, stdin: bytes, **_: object
    ) -> subprocess.CompletedProcess[bytes]:
        await trio.lowlevel.checkpoint()
        assert command == ["nft", "-f", "-"]
        given.append(stdin)
        if isinstance(result, OSError):
            raise result
        return result

    monkeypatch.setattr(trio, "run_process", run_process)
    return given


def test_release_takes_the_table_away_whether_or_not_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = fake_nft(monkeypatch, subprocess.CompletedProcess([], 0, b"", b""))
    trio.run(interception.release)
    assert given == [b"add table netdev lvsha\ndelete table netdev lvsha\n"]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (subprocess.CompletedProcess[bytes]([], 1, b"", b"Error: no\nmore"), "refuses.*Error: no$"),
        (subprocess.CompletedProcess[bytes]([], 1, b"", b""), "no reason"),
        (FileNotFoundError(2, "nft"), "install the package nftables"),
        (PermissionError(13, "no"), "cannot be run"),
    ],
    ids=["refused", "silent", "missing", "not executable"],
)
def test_what_nft_cannot_do_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    result: subprocess.CompletedProcess[bytes] | OSError,
    words: str,
) -> None:
    fake_nft(monkeypatch, result)
    with pytest.raises(HostError, match=words):
        trio.run(interception.intercept, ["eth0"], SERVICES, [])


def _message(kind: int, family: int, *attributes: tuple[int, bytes]) -> bytes:
    body = struct.pack("=BBH", family, 0, 0)
    for number, value in attributes:
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


NEW, DELETED, NEW_RULE = 10 << 8, 10 << 8 | 2, 10 << 8 | 6
NETDEV, INET = 5, 1


def test_only_messages_about_our_own_table_count() -> None:
    ours, other = (1, b"lvsha\0"), (1, b"filter\0")
    data = b"".join(
        (
            _message(DELETED, NETDEV, ours),
            _message(DELETED, NETDEV, other),
            _message(DELETED, INET, ours),
            _message(NEW_RULE, NETDEV, ours),
            _message(NEW, NETDEV, (2, bytes(4)), ours),
            _message(DELETED, NETDEV),
        )
    )
    assert list(table_changes(data)) == [DELETED, NEW]


def test_messages_cut_short_at_any_byte_are_no_trouble() -> None:
    data = _message(DELETED, NETDEV, (1, b"lvsha\0"))
    for end in range(len(data)):
        assert len(list(table_changes(data[:end]))) <= 1
    assert list(table_changes(bytes(64))) == []
