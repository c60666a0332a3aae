"""What is told while a sync daemon runs that a command has started."""

import random

import pytest

from lvsha.build import build_director
from lvsha.config import parse_pair
from lvsha.datapath.connections import SLICE
from lvsha.datapath.director import Director
from lvsha.datapath.service_policy import ESTABLISHED, NEVER, THRESHOLD, ServicePolicy, TellRule
from lvsha.errors import AdministrationError
from lvsha.ipvsadm.requests import StartDaemon, StopDaemon
from lvsha.model import ConnectionChange, ConnectionChanged
from lvsha.sync.ipvs.roster import Role, Roster
from lvsha.sync_daemons import SyncDaemons
from lvsha.tally import NO_SYNC_ID, UNTOLD
from tests import packets
from tests.laboratory import C4, S4, SYNC_ID, V4, Laboratory
from tests.packets import ACK, FIN, SYN

TURN = 0.001
CLOSE_WAIT = 7


class Stand(Laboratory):
    """A director with a service at an address of no virtual router, and its daemons."""

    def __init__(
        self,
        *,
        reporting: TellRule | None = None,
        vips: tuple[str, ...] = (),
        persistence: int = 0,
        policy: ServicePolicy | None = None,
    ) -> None:
        super().__init__(reporting=reporting, vips=vips)
        self.backend = self.server(self.service(persistence=persistence, policy=policy))
        self.daemons = SyncDaemons(Roster({"sync0": 1500}.get), self.director)

    def start(self, role: Role = Role.MASTER) -> None:
        """Start a daemon, and let the connections there are follow."""
        self.daemons.start(StartDaemon(role, "sync0"))
        self.sleep(TURN)

    def stop(self, role: Role = Role.MASTER) -> None:
        """Stop one likewise."""
        self.daemons.stop(StopDaemon(role))
        self.sleep(TURN)

    def speak(self, *flags: int, port: int = 40_000) -> list[tuple[int, int]]:
        """Packets of a client; returns what is told for them: with which one, which state."""
        told = []
        for number, each in enumerate(flags, 1):
            super().send("client", packets.tcp(C4, port, V4, 80, each))
            if each & SYN:
                self.send("server", packets.tcp(S4, 80, C4, port, SYN | ACK))
            told += [(number, state) for state in self.told()]
        return told

    def told(self, sync_id: int = NO_SYNC_ID) -> list[int]:
        """The states that were told since the last time; ends are left out."""
        changes: dict[int, list[ConnectionChange]] = self.director.registry.take_changes()
        assert set(changes) <= {sync_id}
        assert self.mistallied() == self.miscounted() == []
        told = changes.get(sync_id, [])
        return [change.record.state for change in told if isinstance(change, ConnectionChanged)]


def told_states(director: Director) -> set[int]:
    return {connection.told_state for connection in director.registry.table.connections()}


def test_every_connection_is_told_by_the_kernels_rule_while_a_master_runs() -> None:
    stand = Stand()
    stand.start()
    assert stand.speak(SYN, *[ACK] * 60) == [(3, 1), (53, 1)]
    assert stand.backend.at_risk == 0
    assert stand.speak(SYN, ACK, port=40_001) == []
    assert stand.backend.at_risk == 1
    assert stand.speak(FIN | ACK, port=40_001) == [(1, CLOSE_WAIT)]


def test_nothing_is_told_without_a_master() -> None:
    stand = Stand()
    stand.start(Role.BACKUP)
    assert stand.speak(SYN, *[ACK] * 60) == []
    with pytest.raises(AdministrationError):
        stand.stop()
    assert stand.speak(SYN, *[ACK] * 60, port=40_001) == []
    assert stand.director.registry.other_tally is None


def test_a_connection_that_exists_is_told_when_the_kernels_rule_says_so_next() -> None:
    stand = Stand()
    stand.speak(SYN, ACK)
    stand.speak(SYN, *[ACK] * 49, port=40_001)
    stand.start()
    assert stand.told() == []
    assert stand.speak(ACK) == [(1, 1)]
    assert stand.speak(*[ACK] * 4, port=40_001) == [(3, 1)]
    # A closing state is told whatever was counted.
    stand.speak(SYN, ACK, port=40_002)
    assert stand.speak(FIN | ACK, port=40_002) == [(1, CLOSE_WAIT)]


def test_all_slices_of_the_table_follow() -> None:
    stand = Stand()
    number = 3 * SLICE
    for port in range(10_000, 10_000 + number):
        stand.send("client", packets.tcp(C4, port, V4, 80, SYN))
    stand.start()
    tally = stand.director.registry.other_tally
    assert tally is not None
    assert tally.connections == number
    assert stand.mistallied() == []
    stand.stop()
    assert tally.connections == 0
    assert stand.mistallied() == []


def test_with_its_end_it_is_as_if_no_master_had_run() -> None:
    stand = Stand(persistence=300)
    stand.start()
    assert stand.speak(SYN, ACK, ACK)
    stand.speak(SYN, port=40_001)
    stand.stop()
    assert stand.told() == []
    assert told_states(stand.director) == {UNTOLD}
    assert stand.backend.at_risk == 0
    assert stand.speak(*[ACK] * 100) == []
    assert {each.report_at for each in stand.director.registry.table.connections()} == {
        float("inf")
    }
    # The next one speaks to who knows nothing.
    stand.start()
    assert (NO_SYNC_ID, 1) not in stand.speak(*[ACK] * 47)
    assert (50, 1) in stand.speak(*[ACK] * 50)


def test_what_waits_to_be_told_when_the_master_ends_is_told_to_nobody() -> None:
    stand = Stand()
    stand.start()
    for flags in (SYN, ACK, ACK, FIN | ACK):
        stand.send("client", packets.tcp(C4, 40_000, V4, 80, flags))
    assert stand.director.registry.untold
    stand.stop()
    assert stand.told() == []


def test_a_start_and_a_stop_in_one_turn_leave_nothing() -> None:
    stand = Stand()
    stand.speak(SYN, ACK)
    for _ in range(100):
        stand.daemons.start(StartDaemon(Role.MASTER, "sync0"))
        stand.daemons.stop(StopDaemon(Role.MASTER))
    assert len(stand.director._housekeeping._chores) == 1
    stand.sleep(TURN)
    assert stand.speak(*[ACK] * 60) == []


def test_templates_are_told_and_those_that_are_found_no_more_are_not() -> None:
    stand = Stand(persistence=300)
    stand.speak(SYN)
    (template,) = (c for c in stand.director.registry.table.connections() if c.is_template)
    stand.director.registry.poison(template)
    stand.speak(SYN, port=40_001)
    stand.start()
    assert stand.mistallied() == []
    stand.speak(*[ACK] * 5, port=40_001)
    told = {c.told_state != UNTOLD for c in stand.director.registry.table.connections()}
    assert template.told_state == UNTOLD
    assert told == {True, False}


@pytest.mark.parametrize("own", [NEVER, ESTABLISHED, THRESHOLD])
def test_a_rule_that_somebody_has_asked_for_stays(own: TellRule) -> None:
    for stand in (Stand(policy=ServicePolicy(own)), Stand(reporting=own)):
        stand.start()
        told = stand.speak(SYN, ACK, ACK)
        assert bool(told) is (own != NEVER)
        (service,) = stand.director.services
        assert service.policy.tell == own
        stand.stop()
        assert service.policy.tell == own


def test_services_that_come_while_a_master_runs_follow_it() -> None:
    stand = Stand()
    stand.start()
    late = stand.service(port=81)
    assert late.policy.tell == THRESHOLD
    stand.stop()
    assert late.policy.tell == stand.service(port=82).policy.tell == NEVER


def test_the_connections_of_virtual_routers_are_told_under_their_sync_id() -> None:
    stand = Stand(vips=(V4,))
    stand.send("client", packets.tcp(C4, 40_000, V4, 80, SYN))
    stand.send("server", packets.tcp(S4, 80, C4, 40_000, SYN | ACK))
    stand.start()
    for _ in range(2):
        stand.send("client", packets.tcp(C4, 40_000, V4, 80, ACK))
    assert stand.told(SYNC_ID) == [1]
    stand.stop()
    assert told_states(stand.director) == {UNTOLD}
    assert stand.backend.at_risk == 1
    stand.send("client", packets.tcp(C4, 40_000, V4, 80, FIN | ACK))
    assert stand.told(SYNC_ID) == []


SERVICES = """
[nodes.east]
interfaces = { outside = "none0", sync = "none1" }
[[services]]
name = "plain"
address = "192.0.2.1"
port = 80
scheduler = "rr"
servers = []
[[services]]
name = "asked"
address = "192.0.2.1"
port = 81
scheduler = "rr"
servers = []
"""
ROUTER = """
[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["192.0.2.1/24"]
"""


OWN_RULE = 'tell = "never"\n'


@pytest.mark.parametrize(
    ("parts", "plain", "asked"),
    [
        ([SERVICES], THRESHOLD, THRESHOLD),
        ([SERVICES, ROUTER], THRESHOLD, THRESHOLD),
        ([SERVICES, OWN_RULE, "[sync]"], THRESHOLD, NEVER),
        ([SERVICES, OWN_RULE, ROUTER, "[sync]"], ESTABLISHED, NEVER),
        ([SERVICES, ROUTER, "[sync]\n", OWN_RULE], NEVER, NEVER),
    ],
)
def test_the_pair_file_says_which_rules_were_asked_for(
    parts: list[str], plain: TellRule, asked: TellRule
) -> None:
    director = build_director(parse_pair("".join(parts), "pair.toml"), random.Random(1))
    before = {service.name: service.policy for service in director.services}
    director.tell_others(told=True)
    rules = {service.name: service.policy.tell for service in director.services}
    assert rules == {"plain": plain, "asked": asked}
    director.tell_others(told=False)
    assert {service.name: service.policy for service in director.services} == before
