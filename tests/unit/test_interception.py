import struct
import subprocess

import pytest
import trio

from lvsha.datapath import host_link, interception
from lvsha.datapath.claims import Claims
from lvsha.datapath.interception import table_changes
from lvsha.errors import HostError


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


def test_release_takes_tables_and_routes_away_whether_or_not_they_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = []

    async def release() -> None:
        await trio.lowlevel.checkpoint()
        released.append("routes")

    monkeypatch.setattr(host_link, "release", release)
    given = fake_nft(monkeypatch, subprocess.CompletedProcess([], 0, b"", b""))
    trio.run(interception.release)
    assert b"".join(given).decode().splitlines() == [
        "add table netdev lvsha",
        "delete table netdev lvsha",
        "add table inet lvsha",
        "delete table inet lvsha",
        "add table arp lvsha",
        "delete table arp lvsha",
        "add table ip6 lvsha",
        "delete table ip6 lvsha",
    ]
    assert released == ["routes"]


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
        trio.run(interception.intercept, {"eth0": bytes(6)}, Claims())


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
