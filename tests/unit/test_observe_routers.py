from typing import cast

from lvsha.observe.routers import ROUTERS_MAX, VirtualRouters
from lvsha.wire.vrrp import Advertisement, GROUP_IPv4, GROUP_IPv6, emit
from tests.unit.test_wire_vrrp2 import damaged

EAST, WEST = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
EAST6 = bytes.fromhex("fe80" + "00" * 13 + "01")
VIP = bytes((192, 0, 2, 10))


class Ear:
    def __init__(self) -> None:
        self.routers = VirtualRouters()
        self.now = 100.0

    def hear(
        self,
        source: bytes = EAST,
        *,
        vrid: int = 51,
        priority: int = 100,
        interval_cs: int = 100,
        after: float = 1.0,
        hop_limit: int = 255,
        pseudo_header: bool = False,
    ) -> None:
        self.now += after
        group, address = (GROUP_IPv4, VIP) if len(source) == 4 else (GROUP_IPv6, source)
        advertisement = Advertisement(vrid, priority, interval_cs, (address,))
        message = emit(advertisement, source=source, destination=group, pseudo_header=pseudo_header)
        self.routers.receive(message, source, group, hop_limit, self.now)

    def findings(self) -> str:
        return "\n".join(self.routers.findings(self.now))

    def router(self) -> dict[str, object]:
        [router] = cast("list[dict[str, object]]", self.routers.status(self.now)["routers"])
        return router

    def speakers(self) -> list[dict[str, object]]:
        return cast("list[dict[str, object]]", self.router()["speakers"])


def test_the_master_is_who_speaks() -> None:
    ear = Ear()
    for _ in range(10):
        ear.hear()
    assert ear.router()["masters"] == ["10.0.0.1"]
    [speaker] = ear.speakers()
    assert (speaker["priority"], speaker["interval_seconds"], speaker["missed"]) == (100, 1.0, 0)
    assert (speaker["version"], speaker["checksum_over"]) == (3, "message")
    assert ear.findings() == ""


def test_missed_advertisements_are_counted() -> None:
    ear = Ear()
    for after in (1.0, 1.0, 2.1, 1.0, 2.9):
        ear.hear(after=after)
    assert ear.speakers()[0]["missed"] == 3
    assert "3 of 8 advertisements of 10.0.0.1 missed, longest gap 2.90 s" in ear.findings()


def test_a_master_that_was_late_and_not_replaced_has_missed_advertisements() -> None:
    ear = Ear()
    ear.hear()
    ear.hear(after=10.0)
    assert ear.speakers()[0]["missed"] == 9
    assert ear.router()["changes"] == 0


def test_a_change_of_master_is_no_pair_of_masters() -> None:
    ear = Ear()
    for _ in range(3):
        ear.hear()
    ear.hear(priority=0)
    ear.hear(WEST, priority=50, after=0.1)
    assert ear.findings() == ""
    ear.hear(WEST, priority=50)
    assert (ear.router()["masters"], ear.router()["changes"]) == (["10.0.0.2"], 1)
    # The old one comes back and preempts; the other one says one more word.
    ear.hear(EAST, after=0.5)
    assert "two masters" not in ear.findings()
    ear.hear(EAST)
    ear.hear(EAST)
    ear.hear(EAST)
    assert (ear.router()["masters"], ear.router()["changes"]) == (["10.0.0.1"], 2)
    assert ear.findings() == ""


def test_two_masters_are_a_finding() -> None:
    ear = Ear()
    for _ in range(5):
        ear.hear(EAST, after=0.5)
        ear.hear(WEST, priority=50, after=0.5)
    assert "virtual router 51 (IPv4) has two masters: 10.0.0.1, 10.0.0.2" in ear.findings()
    assert ear.router()["two_masters"] is True


def test_a_router_that_nobody_holds_is_a_finding() -> None:
    ear = Ear()
    ear.hear()
    ear.now += 3.1
    assert "virtual router 51 (IPv4) has no master" in ear.findings()


def test_speakers_that_differ_are_a_finding() -> None:
    ear = Ear()
    ear.hear(EAST)
    ear.hear(WEST, interval_cs=300)
    assert "speakers differ in intervals: 1 s; 3 s" in ear.findings()


def test_version_2_is_shown() -> None:
    ear = Ear()
    ear.routers.receive(damaged(_4=1), EAST, GROUP_IPv4, 255, ear.now)
    [speaker] = ear.speakers()
    assert (speaker["version"], speaker["priority"], speaker["authentication"]) == (2, 100, 1)
    ear.hear(WEST)
    assert "speakers differ in versions: 2; 3" in ear.findings()


def test_what_cannot_be_believed_is_counted_by_cause() -> None:
    ear = Ear()
    ear.hear(hop_limit=254)
    ear.routers.receive(damaged()[:-1] + b"\1", EAST, GROUP_IPv4, 255, ear.now)
    ear.routers.receive(b"\x41", EAST, GROUP_IPv4, 255, ear.now)
    ear.routers.receive(b"", EAST, GROUP_IPv4, 255, ear.now)
    assert ear.routers.status(ear.now) == {
        "routers": [],
        "refused": {
            "VRRP checksum is wrong": 1,
            "VRRP message cut short": 2,
            "hop limit is not 255": 1,
        },
    }


def test_both_checksums_and_families_are_read() -> None:
    ear = Ear()
    ear.hear(pseudo_header=True)
    assert ear.speakers()[0]["checksum_over"] == "pseudo-header"
    ear = Ear()
    ear.hear(EAST6)
    assert (ear.router()["family"], ear.router()["masters"]) == (6, ["fe80::1"])


def test_memory_is_bounded() -> None:
    ear = Ear()
    for vrid in range(1, 256):
        ear.hear(vrid=vrid)
        ear.hear(EAST6, vrid=vrid)
    assert len(cast("list[object]", ear.routers.status(ear.now)["routers"])) == ROUTERS_MAX
    for number in range(20):
        ear.hear(bytes((10, 0, 1, number)))
    assert ear.routers.counters["speakers not followed"] == 13
