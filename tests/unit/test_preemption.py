"""Which virtual routers of a node may displace a master now."""

from types import SimpleNamespace
from typing import Any, cast

from lvsha.model import VrrpState
from lvsha.preemption import Preemption

BACKUP, MASTER = VrrpState.BACKUP, VrrpState.MASTER


class Speaker:
    def __init__(self, state: VrrpState) -> None:
        self.election = SimpleNamespace(state=state, preemption_permitted=False)

    def permit_preemption(self, permitted: bool) -> None:
        self.election.preemption_permitted = permitted


class Sync:
    def __init__(self) -> None:
        self.incomplete: set[int] = set()

    def complete(self, sync_id: int) -> bool:
        return sync_id not in self.incomplete


class World:
    """Two virtual routers that move together, and one that does not."""

    def __init__(self) -> None:
        self.sync = Sync()
        self.speakers = {name: Speaker(BACKUP) for name in ("web", "mail", "alone")}
        self.masters: set[str] = set()
        self.warmed = 0
        groups = {"web": ("web", "mail"), "mail": ("web", "mail"), "alone": ("alone",)}
        routers = {
            name: SimpleNamespace(sync_id=number, preempt_incomplete_after=60.0)
            for number, name in enumerate(self.speakers, 51)
        }
        self.notes: list[str] = []
        self.preemption = Preemption(
            cast("Any", routers),
            cast("Any", self.speakers),
            self.masters,
            groups.__getitem__,
            self.sync,
            self._warm,
            cast("Any", SimpleNamespace(note=lambda kind, *_, **__: self.notes.append(kind))),
            0.0,
        )

    def _warm(self) -> None:
        self.warmed += 1

    def look(self, *times: float) -> list[str]:
        for now in times:
            self.preemption.look(now)
        return [n for n, one in self.speakers.items() if one.election.preemption_permitted]


def test_the_ways_are_warmed_a_look_before_preemption_is_permitted() -> None:
    world = World()
    assert world.look(0.1) == []
    assert world.warmed == 3
    assert world.look(0.2) == ["web", "mail", "alone"]
    assert world.warmed == 3


def test_an_incomplete_copy_holds_back_all_that_move_with_it_and_no_other() -> None:
    world = World()
    world.sync.incomplete = {52}
    assert world.look(0.1, 0.2) == ["alone"]
    world.sync.incomplete = set()
    assert world.look(0.3, 0.4) == ["web", "mail", "alone"]
    world.sync.incomplete = {51}
    assert world.look(0.5) == ["alone"]


def test_who_has_just_left_master_is_not_complete_because_it_still_leads() -> None:
    world = World()
    world.masters |= {"web", "alone"}
    for name in ("web", "alone"):
        world.speakers[name].election.state = MASTER
    assert world.look(0.1, 0.2) == ["web", "mail", "alone"]
    world.speakers["web"].election.state = BACKUP
    assert world.look(0.3) == ["alone"]
    world.masters.discard("web")
    assert world.look(0.4, 0.5) == ["web", "mail", "alone"]


def test_an_incomplete_copy_is_not_waited_for_for_ever() -> None:
    world = World()
    world.sync.incomplete = {53}
    assert world.look(0.1, 59.0) == ["web", "mail"]
    assert world.notes == []
    assert world.look(60.0, 61.0) == ["web", "mail", "alone"]
    assert world.notes == ["preempts_incomplete"]
