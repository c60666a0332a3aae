"""What a service manager is told, by the protocol of sd_notify."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lvsha.service_manager import STATUS_CHARACTERS_MAX, Nobody, Systemd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        path = str(tmp_path / "notify")
        listener.bind(path)
        listener.setblocking(False)
        yield listener, path


def test_what_is_told_is_one_datagram_of_lines(manager: tuple[socket.socket, str]) -> None:
    listener, path = manager
    Systemd({"NOTIFY_SOCKET": path}).tell(READY="1", STATUS="web MASTER")
    assert listener.recv(4096) == b"READY=1\nSTATUS=web MASTER"


def test_an_address_without_a_file_is_understood() -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        name = f"lvsha-test-{os.getpid()}"
        listener.bind("\0" + name)
        Systemd({"NOTIFY_SOCKET": "@" + name}).tell(STOPPING="1")
        assert listener.recv(4096) == b"STOPPING=1"


def test_a_status_cannot_bring_lines_of_its_own_and_is_short(
    manager: tuple[socket.socket, str],
) -> None:
    listener, path = manager
    Systemd({"NOTIFY_SOCKET": path}).tell(STATUS="a\nREADY=1 " + "b" * 10_000)
    received = listener.recv(65_536)
    assert b"\n" not in received
    assert len(received) == len("STATUS=") + STATUS_CHARACTERS_MAX


def test_what_was_not_taken_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    systemd = Systemd({"NOTIFY_SOCKET": str(path)})
    systemd.tell(READY="1", STATUS="old")
    assert systemd.counters.snapshot() == {"datagrams_not_taken": 1}
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(path))
        systemd.tell(STATUS="new")
        assert listener.recv(4096) == b"READY=1\nSTATUS=new"
        systemd.tell(WATCHDOG="1")
        assert listener.recv(4096) == b"WATCHDOG=1"


def test_a_manager_that_does_not_read_holds_nothing_up(
    manager: tuple[socket.socket, str],
) -> None:
    _, path = manager
    systemd = Systemd({"NOTIFY_SOCKET": path})
    for _ in range(1000):
        systemd.tell(STATUS="x" * 400)
    assert systemd.counters.snapshot()["datagrams_not_taken"] > 0


@pytest.mark.parametrize("place", ["", "relative", "vsock:2:1234"])
def test_without_a_socket_nobody_is_told(place: str) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "3000000"})
    systemd.tell(READY="1")
    assert systemd.watchdog is None
    assert systemd.counters.snapshot() == {}
    Nobody().tell(READY="1")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert Systemd({"NOTIFY_SOCKET": "/nowhere", **environment}).watchdog == seconds
