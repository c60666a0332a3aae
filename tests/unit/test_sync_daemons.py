"""From the pair file to the daemons of the kernel's sync protocol."""

import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from lvsha.build import build_director
from lvsha.config import parse_pair
from lvsha.model import ConnectionRecord, ForwardMethod, connection_key, parse_address
from lvsha.settings import Settings
from lvsha.sync.ipvs.daemons import Daemons
from lvsha.sync.ipvs.messages import Message, emit
from lvsha.sync.ipvs.roster import Daemon, Role
from lvsha.sync.loopback import LoopbackGroup, LoopbackTransport
from lvsha.sync_daemons import SyncDaemons, make_daemons

PAIR = """
[nodes.east]
interfaces = { outside = "none0", sync = "none1" }

[[virtual_routers]]
name = "web"
vrid = 7
interface = "outside"
addresses = ["192.0.2.1/24"]

[[virtual_routers]]
name = "mail"
vrid = 8
interface = "outside"
addresses = ["192.0.2.2/24"]

[sync]
"""
IPVS = """
format = "ipvs"
group = "ff02::99"
port = 9000
ttl = 4
maxlen = 9000
ports = 2
"""


class Opened:
    """What a node has opened, and what its table was told."""

    def __init__(self, sync: str) -> None:
        self.sockets: dict[tuple[Role, int], LoopbackTransport] = {}
        self.records: list[ConnectionRecord] = []
        self.group = LoopbackGroup()
        pair = parse_pair(PAIR + sync, "pair.toml")
        director = build_director(pair, random.Random(1))
        self.daemons: Daemons = make_daemons(pair, "east", director, self, self.open)

    def open(self, daemon: Daemon, index: int, settings: Settings) -> LoopbackTransport:
        opened = self.sockets[daemon.role, daemon.terms.port + index] = self.group.join()
        return opened

    def apply(self, records: Sequence[ConnectionRecord]) -> None:
        self.records += records


def test_the_pair_file_says_which_daemons_run() -> None:
    opened = Opened(IPVS)
    views = SyncDaemons(opened.daemons).running()
    assert [(view.role, view.sync_id) for view in views] == [
        (Role.MASTER, 7),
        (Role.MASTER, 8),
        (Role.BACKUP, 7),
        (Role.BACKUP, 8),
    ]
    for view in views:
        assert (view.interface, view.port, view.ttl, view.length_max) == ("none1", 9000, 4, 9000)
        assert view.group == parse_address("ff02::99")
    # A pair file may be checked where its interfaces are not.
    assert opened.sockets == {}


def test_in_another_format_daemons_wait_for_commands() -> None:
    opened = Opened('format = "lvsha"')
    assert opened.daemons.running() == []
    assert opened.sockets == {}


@pytest.mark.parametrize(("state", "taken"), [(10, True), (11, False)])
def test_the_states_that_are_known_are_the_directors(state: int, taken: bool) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(opened.daemons.run)
            opened.sockets[Role.BACKUP, 9000].deliver(emit(Message(1, 8, (record,))))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert sorted(port for _, port in opened.sockets) == [9000, 9000, 9001, 9001]

    address = parse_address("192.0.2.2")
    record = ConnectionRecord(
        connection_key(6, address, 1, address, 80), address, 80, ForwardMethod.NAT, state, 0, 9.0
    )
    opened = Opened(IPVS)
    trio.run(main)
    assert bool(opened.records) is taken
