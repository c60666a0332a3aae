"""What comes into force when, under a clock of the test's own."""

from collections.abc import Awaitable, Callable, Collection, Mapping

import pytest
import trio
import trio.testing

from lvsha.counters import Counters
from lvsha.datapath import guard as guard_module
from lvsha.datapath.claims import Claims
from lvsha.datapath.flow import Frame
from lvsha.datapath.guard import REMOVED_INTERVAL, SETTLING, Guard
from lvsha.datapath.host_link import HostLink
from lvsha.datapath.network import AddressChange, LinkChange
from lvsha.errors import HostError
from lvsha.model import VirtualMac, parse_address
from lvsha.wire.vrrp import virtual_mac
from tests import packets
from tests.laboratory import C4, CLIENT, S4, V4, Laboratory


class Kernel:
    """Takes rules, and says what is in force; refuses as often as it is told to."""

    def __init__(self) -> None:
        self.loaded: list[tuple[Claims, float | None]] = []
        self.present: list[list[str]] = []
        self.events: list[str] = []
        self.refuse = 0

    async def intercept(
        self,
        interfaces: Mapping[str, bytes],
        claims: Claims,
        remember: float | None,
        virtual_macs: Collection[VirtualMac],
    ) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuse:
            self.refuse -= 1
            raise HostError("no")
        self.events.append("rules")
        self.present.append(list(interfaces))
        self.loaded.append((claims, remember))


class Link(HostLink):
    """A host link that is open once somebody has asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.missing = False

    @property
    def is_open(self) -> bool:
        return self.opened > 0

    async def open(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.missing:
            raise HostError("no TUN device")
        self.opened += 1


class Trial:
    """A guard over a director in a laboratory."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, virtual_macs: Collection[VirtualMac] = ()
    ) -> None:
        self.laboratory = Laboratory()
        self.kernel = Kernel()
        monkeypatch.setattr(guard_module, "intercept", self.kernel.intercept)
        self.link = Link()
        self.counters = Counters()
        self.guard = Guard(
            self.laboratory.director,
            ("client", "gone"),
            self.link,
            self.counters,
            lambda: self.kernel.events.append("filters"),
            virtual_macs,
        )

    def run(self, test: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await self.guard.apply()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.guard._follow)
                await trio.testing.wait_all_tasks_blocked()
                await test()
                nursery.cancel_scope.cancel()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(monkeypatch)


def frame_to(address: str, port: int) -> Frame:
    frame = Frame()
    frame.load(packets.ethernet(packets.tcp(C4, 5000, address, port)))
    return frame


def test_rules_come_before_filters_and_only_on_interfaces_that_are_there(trial: Trial) -> None:
    async def test() -> None:
        await trio.lowlevel.checkpoint()
        assert trial.kernel.events == ["rules", "filters"]
        assert trial.kernel.present == [["client"]]
        assert trial.kernel.loaded == [(Claims(), None)]

    trial.run(test)


def test_changes_in_a_row_are_taken_over_together(trial: Trial) -> None:
    async def test() -> None:
        for port in range(1000, 1100):
            trial.laboratory.service(port=port)
            trial.guard.change()
        began = trio.current_time()
        await trial.guard.settled()
        assert trio.current_time() - began == pytest.approx(SETTLING)
        assert len(trial.kernel.loaded) == 2
        assert len(trial.guard.claims.services) == 100

    trial.run(test)


def test_packets_of_a_service_are_the_hosts_until_its_rules_are_loaded(trial: Trial) -> None:
    async def test() -> None:
        trial.laboratory.service(port=80)
        trial.guard.change()
        await trial.guard.settled()
        trial.laboratory.service(port=81)
        trial.guard.change()
        assert trial.guard.leaves(frame_to(V4, 81))
        assert not trial.guard.leaves(frame_to(V4, 80))
        assert not trial.guard.leaves(frame_to(V4, 82))
        await trial.guard.settled()
        assert not trial.guard.leaves(frame_to(V4, 81))

    trial.run(test)


def test_it_insists_when_the_kernel_refuses(trial: Trial) -> None:
    async def test() -> None:
        trial.kernel.refuse = 3
        trial.laboratory.service()
        trial.guard.change()
        await trial.guard.settled()
        assert trial.counters.snapshot() == {"claims_not_in_force": 3}
        assert trial.guard.claims.services

    trial.run(test)


def test_the_host_link_is_opened_when_a_server_comes_to_this_host(trial: Trial) -> None:
    async def test() -> None:
        laboratory = trial.laboratory
        laboratory.server(laboratory.service())
        trial.guard.change()
        await trial.guard.settled()
        opened = [trial.link.opened]
        for address in (V4, S4):
            change = AddressChange(CLIENT, parse_address(address), present=True)
            laboratory.director.learn(change)
            trial.guard.note([change])
            assert trial.guard.pending is (address == S4)
        await trial.guard.settled()
        opened.append(trial.link.opened)
        assert opened == [0, 1]
        assert trial.kernel.loaded[-1][1] == laboratory.director.timeouts[0]

    trial.run(test)


@pytest.mark.parametrize("why", ["backup_only", "ftp"])
def test_the_host_link_is_opened_where_packets_may_be_handed_back(trial: Trial, why: str) -> None:
    async def test() -> None:
        if why == "ftp":
            trial.laboratory.server(trial.laboratory.service(port=21))
        else:
            trial.laboratory.set(backup_only=1)
        trial.guard.change()
        await trial.guard.settled()
        assert trial.link.opened

    trial.run(test)


def test_where_there_is_no_host_link_removed_servers_are_not_claimed(trial: Trial) -> None:
    async def test() -> None:
        trial.link.missing = True
        laboratory = trial.laboratory
        service = laboratory.service()
        laboratory.server(service)
        laboratory.send("client", packets.tcp(C4, 4000, V4, 80, packets.SYN))
        laboratory.director.services.delete(service.identity)
        laboratory.server(laboratory.service(port=81))
        trial.guard.change()
        await trial.guard.settled()
        assert not trial.guard.claims.removed
        assert len(trial.guard.claims.services) == 1

    trial.run(test)


def test_claims_end_a_while_after_the_last_connection_of_a_removed_server(trial: Trial) -> None:
    async def test() -> None:
        laboratory = trial.laboratory
        service = laboratory.service()
        laboratory.server(service)
        laboratory.send("client", packets.tcp(C4, 4000, V4, 80, packets.SYN))
        laboratory.director.services.delete(service.identity)
        trial.guard.change()
        await trial.guard.settled()
        assert trial.guard.claims.removed
        laboratory.sleep(100)
        await trio.sleep(REMOVED_INTERVAL + 1)
        assert trial.guard.claims == Claims()

    trial.run(test)


def test_another_mac_address_of_an_interface_makes_other_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If neighbours are told a virtual one in its place; else it is in no rule."""
    mac = bytes.fromhex("02ffffffff01")
    macs = (VirtualMac(virtual_mac(51, 4), frozenset({parse_address(V4)})),)
    for virtual_macs, expected in (((), 1), (macs, 2)):
        trial = Trial(monkeypatch, virtual_macs)

        async def test(trial: Trial = trial) -> None:
            network = trial.laboratory.director.network
            change = LinkChange(CLIENT, "client", mac, 1500, up=True)
            for _ in range(2):
                network.apply(change)
                trial.guard.note([change])
                await trio.sleep(2 * SETTLING)

        trial.run(test)
        assert len(trial.kernel.loaded) == expected
