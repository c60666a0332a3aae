"""What becomes of an open connection when its director is started anew, with an empty table."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.yard import (
    NEEDS,
    ROOT,
    SERVER,
    VIP,
    Echo,
    Running,
    Yard,
    a_director,
    a_socket,
    a_yard,
    service,
    until,
)

pytestmark = NEEDS

AT_ONCE = 1.0


@pytest.fixture(scope="module")
def ground() -> Iterator[Yard]:
    with a_yard("lvu") as made:
        yield made


def configuration(family: int, unknown: str) -> str:
    text = service(
        "web",
        f'address = "{VIP[family]}"; port = 80; unknown = "{unknown}"',
        f'address = "{SERVER[family]}", port = 8080',
    )
    return text.replace('"rr"', '"mh"')


def echo(ground: Yard, family: int) -> Echo:
    return Echo(ground.server, family, SERVER[family], 8080, "real")


def connected(ground: Yard, family: int) -> socket.socket:
    """An open connection that has been used."""
    client = a_socket(ground.client, family, socket.SOCK_STREAM)
    client.connect((VIP[family], 80))
    assert client.recv(100) == b"real "
    go_on(client, b"one")
    return client


def go_on(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    assert client.recv(100) == data
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def killed(running: Running) -> None:
    """A director dies when all that was sent has arrived, so that nobody sends it again."""
    counts = [-1]

    def has_settled() -> bool:
        (server,) = json.loads(running.lvsha("status", "--json"))["services"]["web"]["servers"]
        counts.append(server["in_packets"])
        return counts[-1] == counts[-2]

    until(has_settled)
    running.end(signal.SIGKILL)


def is_reset(client: socket.socket) -> bool:
    """Whether a client learns at once that its connection is gone."""
    client.settimeout(AT_ONCE)
    client.sendall(b"two")
    try:
        return not client.recv(100)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    ("family", "unknown"), [(4, "reset"), (4, "kernel"), (6, "kernel"), (4, "adopt")]
)
def test_a_director_with_an_empty_table_does_what_its_service_says(
    ground: Yard, tmp_path: Path, family: int, unknown: str
) -> None:
    text = configuration(family, unknown)
    servers = [echo(ground, family)]
    with (
        a_director(ground, tmp_path, text, servers) as first,
        connected(ground, family) as client,
    ):
        killed(first)
        with a_director(ground, tmp_path, text) as second:
            if unknown == "adopt":
                go_on(client, b"two")
            else:
                assert is_reset(client)
                connected(ground, family).close()
            said = json.loads(second.lvsha("status", "--json"))
    assert bool(said["drops"].get("reset")) is (unknown == "reset")
    handed_back = said["counters"]["forwarder"].get("handed_back", 0)
    assert bool(handed_back) is (unknown == "kernel")


@pytest.mark.parametrize(
    ("family", "answer", "dropped"),
    [(4, "record", set()), (6, "deny", {"RESET"}), (4, "nothing", {"UNANSWERED"})],
)
def test_a_packet_waits_for_what_the_peers_say(
    ground: Yard, tmp_path: Path, family: int, answer: str, dropped: set[str]
) -> None:
    text = configuration(family, "reset")
    with (
        a_director(ground, tmp_path, text, [echo(ground, family)]) as first,
        connected(ground, family) as client,
    ):
        killed(first)
        first.clean()
        with answered_director(ground, family, answer, client) as other:
            if answer == "record":
                before = time.monotonic()
                go_on(client, b"two")
                assert time.monotonic() - before < 0.2  # before it would be sent again
            else:
                assert is_reset(client) is (answer == "deny")
            drops, _ = other.communicate("")
    # What the client sends again while its first packet waits has no place.
    assert set(json.loads(drops)) - {"QUESTIONS_FULL"} == dropped


@contextmanager
def answered_director(
    ground: Yard, family: int, answer: str, client: socket.socket
) -> Iterator[subprocess.Popen[str]]:
    words = ["ip", "netns", "exec", ground.director, sys.executable, "-m"]
    words += ["tests.netns.answered_director", str(family), answer]
    with subprocess.Popen(
        [*words, str(client.getsockname()[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
