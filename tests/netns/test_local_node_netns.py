"""A real server that is the director itself, between real stacks."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import yard as yards
from tests.yard import (
    CLIENT,
    INSIDE,
    NEEDS,
    SERVER,
    VIP,
    Echo,
    Running,
    Yard,
    a_director,
    a_socket,
    a_yard,
    ask,
    ask_datagram,
    service,
)

pytestmark = NEEDS

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
NAT_PORT, DR_PORT, BOTH_PORT, CLOSED_PORT = 80, 81, 82, 83
OWN_PORT = 8080
BULK = bytes(range(256)) * 16_384


def configuration() -> str:
    text = ""
    for family in (4, 6):
        for protocol in ("tcp", "udp"):
            here = f'address = "{INSIDE[family]}"'
            there = f'address = "{SERVER[family]}"; port = {OWN_PORT}'.replace("; ", ", ")
            for port, method, servers in (
                (NAT_PORT, "nat", [f"{here}, port = {OWN_PORT}"]),
                (DR_PORT, "dr", [here]),
                (BOTH_PORT, "nat", [f"{here}, port = {OWN_PORT}", there]),
                (CLOSED_PORT, "nat", [f"{here}, port = 9"]),
            ):
                text += service(
                    f"{protocol}-{port}-{family}",
                    f'address = "{VIP[family]}"; port = {port}; protocol = "{protocol}"; '
                    f'method = "{method}"',
                    *servers,
                )
    return text


@pytest.fixture(scope="module")
def yard() -> Iterator[Yard]:
    with a_yard("lvshl") as made:
        yield made


def servers(yard: Yard) -> list[Echo]:
    return [
        Echo(namespace, family, address[family], port, name)
        for family in (4, 6)
        for namespace, address, port, name in (
            (yard.director, INSIDE, OWN_PORT, "own"),
            (yard.director, VIP, DR_PORT, "direct"),
            (yard.server, SERVER, OWN_PORT, "far"),
        )
    ]


@pytest.fixture(scope="module")
def director(yard: Yard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("director")
    with a_director(yard, directory, configuration(), servers(yard)) as running:
        yield running


@FAMILIES
@pytest.mark.parametrize(("port", "name"), [(NAT_PORT, b"own"), (DR_PORT, b"direct")])
def test_a_bulk_transfer_with_a_server_on_this_host_arrives_intact_both_ways(
    director: Running, yard: Yard, family: int, port: int, name: bytes
) -> None:
    assert ask(yard.client, family, VIP[family], port, BULK) == name + b" " + BULK


@FAMILIES
@pytest.mark.parametrize(("port", "name"), [(NAT_PORT, b"own"), (DR_PORT, b"direct")])
@pytest.mark.parametrize("length", [0, 1400, 9000])
def test_datagrams_are_answered_from_the_virtual_address(
    director: Running, yard: Yard, family: int, port: int, name: bytes, length: int
) -> None:
    data = bytes(length)
    assert ask_datagram(yard.client, family, VIP[family], port, data) == name + b" " + data


@FAMILIES
def test_servers_here_and_elsewhere_take_turns(director: Running, yard: Yard, family: int) -> None:
    answers = [ask(yard.client, family, VIP[family], BOTH_PORT, b"x") for _ in range(4)]
    assert sorted(answers) == [b"far x", b"far x", b"own x", b"own x"]


@FAMILIES
def test_who_asks_the_server_itself_is_answered_by_it(
    director: Running, yard: Yard, family: int
) -> None:
    here = INSIDE[family]
    assert ask(yard.client, family, here, OWN_PORT, b"x") == b"own x"
    assert ask(yard.director, family, here, OWN_PORT, b"x") == b"own x"
    assert ask_datagram(yard.client, family, here, OWN_PORT, b"x") == b"own x"


@FAMILIES
def test_the_same_client_port_may_be_used_for_either(
    director: Running, yard: Yard, family: int
) -> None:
    for address, port in ((VIP, NAT_PORT), (INSIDE, OWN_PORT), (VIP, NAT_PORT)):
        with a_socket(yard.client, family, socket.SOCK_DGRAM, (CLIENT[family], 7777)) as client:
            client.connect((address[family], port))
            client.send(b"x")
            assert client.recv(100) == b"own x"


@FAMILIES
def test_the_host_tells_of_a_closed_port_in_the_name_of_the_service(
    director: Running, yard: Yard, family: int
) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(yard.client, family, VIP[family], CLOSED_PORT, b"x")
    with pytest.raises(ConnectionRefusedError):
        ask_datagram(yard.client, family, VIP[family], CLOSED_PORT, b"x")


def test_a_strict_reverse_path_filter_does_not_matter(director: Running, yard: Yard) -> None:
    yard.on_director("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    try:
        for port, name in ((NAT_PORT, b"own"), (DR_PORT, b"direct")):
            assert ask(yard.client, 4, VIP[4], port, b"x") == name + b" x"
    finally:
        yard.on_director("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")


def test_flows_outlive_a_change_of_the_rules(director: Running, yard: Yard) -> None:
    def listed(name: str) -> str:
        return yard.on_director("nft", "list", "set", "inet", "lvsha", name)

    with a_socket(yard.client, 4, socket.SOCK_STREAM) as client:
        client.connect((VIP[4], NAT_PORT))
        assert client.recv(100) == b"own "
        flow = f"tcp . {client.getsockname()[1]} . {OWN_PORT}"
        assert flow in listed("flows4")
        # A real server that comes to this host changes the rules.
        yard.on_director("ip", "addr", "add", f"{SERVER[4]}/32", "dev", "lo")
        try:
            yards.until(lambda: SERVER[4] in listed("local4"))
            assert flow in listed("flows4")
        finally:
            yard.on_director("ip", "addr", "del", f"{SERVER[4]}/32", "dev", "lo")
            yards.until(lambda: SERVER[4] not in listed("local4"))
        client.sendall(b"x")
        assert client.recv(100) == b"x"


def traces(yard: Yard) -> list[str]:
    """What a run leaves on the host."""
    return [
        line
        for words in (
            ("nft", "list", "tables"),
            ("ip", "-o", "link"),
            ("ip", "rule"),
            ("ip", "-6", "rule"),
            ("ip", "route", "show", "table", "all"),
            ("ip", "-6", "route", "show", "table", "all"),
        )
        for line in yard.on_director(*words).splitlines()
        if "lvsha" in line or str(0x6C76_7368) in line
    ]


def test_nothing_is_left_by_a_stop_or_after_a_clean(
    director: Running, yard: Yard, tmp_path: Path
) -> None:
    assert len(traces(yard)) >= 9
    assert director.end() == 0
    assert traces(yard) == []
    again = Running(yard, tmp_path, configuration())
    again.end(signal.SIGKILL)
    assert traces(yard)
    assert "lvsha0" not in yard.on_director("ip", "-o", "link")
    again.clean()
    assert traces(yard) == []


def test_without_a_server_on_this_host_there_is_no_device(yard: Yard, tmp_path: Path) -> None:
    text = service(
        "far", f'address = "{VIP[4]}"; port = 80', f'address = "{SERVER[4]}", port = {OWN_PORT}'
    )
    with a_director(yard, tmp_path, text):
        assert "lvsha0" not in yard.on_director("ip", "-o", "link")
        assert "inet lvsha" not in yard.on_director("nft", "list", "tables")
        # An address of a real server that comes to this host makes it one of its own.
        yard.on_director("ip", "addr", "add", f"{SERVER[4]}/32", "dev", "lo")
        try:
            yards.until(lambda: "lvsha0" in yard.on_director("ip", "-o", "link"))
            echo = Echo(yard.director, 4, SERVER[4], OWN_PORT, "moved")
            try:
                assert ask(yard.client, 4, VIP[4], 80, b"x") == b"moved x"
            finally:
                echo.close()
        finally:
            yard.on_director("ip", "addr", "del", f"{SERVER[4]}/32", "dev", "lo")
