"""Real directors check real servers, and what they find decides where connections go.

The probes go out beside a forwarder that takes the service's frames from the host: for NAT a
server's answer to a probe looks much like its answer to a client.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.yard import (
    NEEDS,
    SERVER,
    VIP,
    Echo,
    Running,
    a_director,
    a_yard,
    ask,
    service,
    until,
)

pytestmark = NEEDS

PORT, OWN_PORT, SORRY_PORT = 8080, 8081, 8099
TIMES = "interval = 0.2, timeout = 1, rise = 1, fall = 1"


def status(director: Running) -> Mapping[str, Mapping[str, object]]:
    """The health of each server of the only service, by its address."""
    (told,) = json.loads(director.lvsha("status", "--json"))["services"].values()
    return {each["address"]: each.get("health") for each in told["servers"]}


def told(director: Running) -> list[str]:
    """The opinions that the director has logged, in their order."""
    lines = [json.loads(line)["event"] for line in list(director.log)]
    return [line.removeprefix("server ") for line in lines if line.startswith("server ")]


def answer(yard_client: str, family: int) -> bytes:
    """Who answers on the virtual address; nothing if nobody does."""
    with suppress(OSError, AssertionError):
        return ask(yard_client, family, VIP[family], PORT, b"x")
    return b""


@pytest.mark.parametrize("family", [4, 6])
def test_connections_follow_what_the_checks_find(tmp_path: Path, family: int) -> None:
    address, virtual = SERVER[family], VIP[family]
    text = service(
        "web",
        f'address = "{virtual}"; port = {PORT}; '
        f"checks = ["
        f'{{ type = "tcp", {TIMES}, interface = "inside" }}, '
        f'{{ type = "ping", {TIMES} }}, '
        f'{{ type = "udp", payload = "well", expect = "web well", {TIMES} }}, '
        f'{{ type = "script", command = ["/bin/sh", "-c", "exit 0"], {TIMES} }}]; '
        f'sorry_server = {{ address = "{address}", port = {SORRY_PORT} }}',
        f'address = "{address}", port = {OWN_PORT}, weight = 5',
    )
    end = f"{address}:{OWN_PORT}" if family == 4 else f"[{address}]:{OWN_PORT}"
    with a_yard(f"health{family}") as yard:
        web = Echo(yard.server, family, address, OWN_PORT, "web")
        sorry = Echo(yard.server, family, address, SORRY_PORT, "sorry")
        with a_director(yard, tmp_path, text, [sorry]) as director:
            try:
                until(lambda: told(director) == ["up"])
                until(lambda: answer(yard.client, family) == b"web x")
                # An operator's weight is the server's own from now on.
                words = ("-t", f"{virtual if family == 4 else f'[{virtual}]'}:{PORT}", "-r", end)
                director.lvsha("ipvsadm", "-e", *words, "-m", "-w", "3")
            finally:
                web.close()
            until(lambda: told(director) == ["up", "down"])
            assert status(director)[end]["own_weight"] == 3
            until(lambda: answer(yard.client, family) == b"sorry x")
            assert "down for" in director.lvsha("status")
            again = Echo(yard.server, family, address, OWN_PORT, "web")
            try:
                until(lambda: answer(yard.client, family) == b"web x")
                (listed,) = json.loads(director.lvsha("status", "--json"))["services"]["web"][
                    "servers"
                ]
                assert (listed["weight"], listed["health"]["opinion"]) == (3, "up")
            finally:
                again.close()


def test_a_mark_and_a_source_steer_a_probe(tmp_path: Path) -> None:
    """A routing rule sends marked packets to the client's host, where nothing listens."""
    text = service(
        "web",
        f'address = "{VIP[4]}"; port = {PORT}; '
        f'checks = [{{ type = "tcp", {TIMES}, mark = 7, sources = {{ only = "10.78.1.1" }} }}]',
        f'address = "{SERVER[4]}", port = {OWN_PORT}',
    )
    end = f"{SERVER[4]}:{OWN_PORT}"
    with a_yard("healthm") as yard:
        web = Echo(yard.server, 4, SERVER[4], OWN_PORT, "web")
        with a_director(yard, tmp_path, text, [web]) as director:
            until(lambda: told(director) == ["up"])
            yard.on_director("ip", "route", "add", "unreachable", SERVER[4], "table", "77")
            yard.on_director("ip", "rule", "add", "fwmark", "7", "table", "77", "pref", "5")
            until(lambda: told(director) == ["up", "down"])
            assert status(director)[end]["reason"] == "No route to host"
