"""The real host: what it makes, and in which order it cleans up."""

import random
import tempfile
from pathlib import Path

import pytest
import trio

from lvsha import control, host
from lvsha.config import Sync, VirtualRouter
from lvsha.datapath import interception
from lvsha.datapath.director import Director
from lvsha.errors import HostError
from lvsha.failover.addresses import InterfaceAddress
from lvsha.failover.rtnetlink import IpInterface
from lvsha.host import LinuxHost

ROUTER = VirtualRouter.model_validate(
    {"name": "web", "vrid": 7, "interface": "outside", "addresses": ["192.0.2.10/24"]}
)
NOWHERE = "no-such-if0"


def placed() -> list[InterfaceAddress]:
    address: IpInterface = ROUTER.addresses[0].address
    return [InterfaceAddress(NOWHERE, address)]


def test_routes_go_before_addresses_and_these_before_what_hides_them_from_the_hosts_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    async def remove_routes() -> int:
        await trio.lowlevel.checkpoint()
        done.append("routes")
        return 1

    async def remove(addresses: list[InterfaceAddress]) -> int:
        await trio.lowlevel.checkpoint()
        done.extend(map(str, addresses))
        return len(addresses)

    async def release() -> None:
        await trio.lowlevel.checkpoint()
        done.append("rules")

    monkeypatch.setattr(host, "remove_leftover_routes", remove_routes)
    monkeypatch.setattr(host, "remove_leftovers", remove)
    monkeypatch.setattr(interception, "release", release)
    trio.run(LinuxHost().clean, placed())
    assert done == ["routes", f"192.0.2.10/24 on {NOWHERE}", "rules"]


def test_addresses_go_even_where_routes_cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def refuse() -> int:
        await trio.lowlevel.checkpoint()
        raise HostError("the kernel refuses")

    async def remove(addresses: list[InterfaceAddress]) -> int:
        await trio.lowlevel.checkpoint()
        done.extend(map(str, addresses))
        return len(addresses)

    monkeypatch.setattr(host, "remove_leftover_routes", refuse)
    monkeypatch.setattr(host, "remove_leftovers", remove)
    with pytest.raises(HostError, match="the kernel refuses"):
        trio.run(LinuxHost().clean, placed())
    assert done == [f"192.0.2.10/24 on {NOWHERE}"]


def test_rules_stay_where_addresses_cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def refuse(_addresses: list[InterfaceAddress]) -> int:
        await trio.lowlevel.checkpoint()
        raise HostError("the kernel refuses")

    async def release() -> None:
        await trio.lowlevel.checkpoint()
        done.append("rules")

    async def no_routes() -> int:
        await trio.lowlevel.checkpoint()
        return 0

    monkeypatch.setattr(host, "remove_leftover_routes", no_routes)
    monkeypatch.setattr(host, "remove_leftovers", refuse)
    monkeypatch.setattr(interception, "release", release)
    with pytest.raises(HostError, match="the kernel refuses"):
        trio.run(LinuxHost().clean, placed())
    assert done == []


def test_only_one_director_is_in_a_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LVSHA_RUNTIME_DIR", str(tmp_path))
    made = LinuxHost()
    with made.exclusive(), pytest.raises(HostError, match="another lvsha director runs"):
        made.exclusive()
    with made.exclusive():
        pass


def test_epochs_differ_from_run_to_run_and_have_64_bits() -> None:
    epochs = {LinuxHost().epoch() for _ in range(100)}
    assert len(epochs) == 100
    assert all(0 <= epoch < 2**64 for epoch in epochs)
    assert max(epochs) > 2**56


def test_an_interface_that_is_not_there_is_named() -> None:
    made = LinuxHost()
    with pytest.raises(HostError, match=NOWHERE):
        made.sync_transport(NOWHERE, Sync())
    with pytest.raises(HostError, match=NOWHERE):
        made.advertisement_transport(NOWHERE, ROUTER, ())


def test_it_makes_a_forwarder_for_the_director() -> None:
    async def make() -> dict[str, int]:
        director = Director(connections_max=10, dice=random.Random(1))
        made = LinuxHost().forwarder(director, ["eth0"], lambda: None, 0.3, ())
        return made.counters.snapshot()

    assert trio.run(make) == {}


def test_it_answers_on_the_control_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve() -> object:
        async with trio.open_nursery() as nursery:
            await nursery.start(LinuxHost().serve_control, {"status": lambda: {"node": "east"}})
            answer = await trio.to_thread.run_sync(control.ask, "status")
            nursery.cancel_scope.cancel()
        return answer

    # A socket's path has at most 107 bytes, and tmp_path may be longer.
    with tempfile.TemporaryDirectory(prefix="lvw-") as directory:
        monkeypatch.setenv("LVSHA_RUNTIME_DIR", directory)
        assert trio.run(serve) == {"node": "east"}
        assert not control.socket_path().exists()
