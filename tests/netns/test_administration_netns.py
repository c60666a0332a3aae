"""Services are changed while real connections go on."""

import socket
from pathlib import Path

import pytest

from tests.yard import (
    NEEDS,
    SERVER,
    VIP,
    Echo,
    a_director,
    a_socket,
    a_yard,
    ask,
    service,
    until,
)

pytestmark = NEEDS

PORT, OWN_PORT = 8080, 8081
SILENCE = 0.5
"""Seconds in which a reset would long have come."""


def test_a_connection_outlives_the_deletion_of_its_service(tmp_path: Path) -> None:
    end, server = f"{VIP[4]}:{PORT}", f"{SERVER[4]}:{OWN_PORT}"
    text = service(
        "web", f'address = "{VIP[4]}"; port = {PORT}', f'address = "{SERVER[4]}", port = {OWN_PORT}'
    ) + service("other", f'address = "{VIP[4]}"; port = 443')
    with a_yard("lvadm") as yard:
        echo = Echo(yard.server, 4, SERVER[4], OWN_PORT, "web")
        with (
            a_director(yard, tmp_path, text, [echo]) as director,
            a_socket(yard.client, 4, socket.SOCK_STREAM) as client,
        ):
            client.connect((VIP[4], PORT))
            assert client.recv(10) == b"web "
            director.lvsha("ipvsadm", "-D", "-t", end)
            client.settimeout(SILENCE)
            client.send(b"still there?")
            with pytest.raises(TimeoutError):
                client.recv(100)
            # A new connection is the host's to refuse.
            with pytest.raises(ConnectionRefusedError):
                ask(yard.client, 4, VIP[4], PORT, b"x")
            director.lvsha("ipvsadm", "-A", "-t", end, "-s", "rr")
            director.lvsha("ipvsadm", "-a", "-t", end, "-r", server, "-m")
            client.settimeout(10)
            assert client.recv(100) == b"still there?"
            client.close()  # the server talks with one at a time
            until(lambda: ask(yard.client, 4, VIP[4], PORT, b"x") == b"web x")
