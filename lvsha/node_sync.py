"""A node's part in the sync: what speaks of its connections, and what it hears of others'.

Here the pair file, the director and the sync meet. In lvsha's own format each virtual router
has a `Replica` and all of them one `Courier`; in the kernel's there are daemons as a kernel
has them. Daemons can be started beside either while the node runs, as ``ipvsadm
--start-daemon`` does it. Whoever speaks is told of every change and every change of roles.

What the nodes compare of their configurations is the pair file and, beside it, the services
as they run: a service that was changed on one node alone would be missed at a takeover. Not
compared are weights, which each node may set by what its own checks say, and whether servers
are listed that these checks add and remove.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Final, Protocol, assert_never

import structlog
import trio

from lvsha.config import Pair, Sync
from lvsha.connection_store import ConnectionStore
from lvsha.datapath.director import Director
from lvsha.datapath.services import VirtualService
from lvsha.errors import ConfigError
from lvsha.failover.second_path import ALIVE_INTERVALS, Said
from lvsha.host import Host
from lvsha.model import ConnectionChange, VrrpState, Witness
from lvsha.sync.actions import (
    Alarm,
    ConfigurationAgrees,
    ConfigurationDiffers,
    OpinionsHeard,
    PeerChanged,
    TakeOver,
)
from lvsha.sync.courier import Courier, SyncEvent
from lvsha.sync.key_file import KeyFile
from lvsha.sync.messages import DIGEST_BYTES, Duty, Opinions, Standing
from lvsha.sync.opinions import NotUp
from lvsha.sync.pace import Pace
from lvsha.sync.replica import Replica
from lvsha.sync.seal import Seal
from lvsha.sync_daemons import make_daemons
from lvsha.tally import NO_SYNC_ID
from lvsha.turns import Turns

KEY_INTERVAL: Final = 1.0
"""Seconds between two looks at the key file."""
SETTLE: Final = 0.2
"""Seconds in which changes of services are taken together."""
_SESSION_BITS: Final = 64

_log = structlog.get_logger("sync")


class Carrier(Protocol):
    """What tells other directors of changes, in one format or another."""

    def tell(self, sync_id: int, changes: Sequence[ConnectionChange]) -> None:
        """Tell of changes; they leave in this turn of the loop."""
        ...

    def lead(self, sync_id: int) -> None:
        """This node holds the addresses of this sync id now."""
        ...

    def follow(self, sync_id: int) -> None:
        """This node does not hold the addresses of this sync id any more."""
        ...

    def resync(self, sync_id: int) -> None:
        """This node was stalled: believe the copy only when it was compared anew."""
        ...

    def complete(self, sync_id: int) -> bool:
        """Whether this node has all that the leader of this sync id has."""
        ...


class NodeSync:
    """The sync of one node.

    Args:
        pair: the pair file.
        name: which of its nodes this is.
        director: whose connections it is about.
        store: they, as the sync sees them.
        host: the machine.
        on_call: called with a sync id whose leader wants this node to take over.

    Attributes:
        replicas: one for each virtual router, with lvsha's own format.
        daemons: those that speak the kernel's.
        may_be_away: the servers of a service that are not compared.
        on_opinions: called with what a peer's health checks find.
        on_alarm: called with the sync id, the kind of an alarm, and the peer.
    """

    def __init__(
        self,
        pair: Pair,
        name: str,
        director: Director,
        store: ConnectionStore,
        host: Host,
        on_call: Callable[[int], None],
    ) -> None:
        self._pair = pair
        self._name = name
        self._director = director
        self._store = store
        self._host = host
        self._on_call = on_call
        self.replicas: list[Replica] = []
        self._courier: Courier | None = None
        self.daemons = make_daemons(pair, name, director, store, host.open_sync_socket)
        self.may_be_away: Callable[[VirtualService], Collection[tuple[bytes, int]]] = lambda _: ()
        self.on_opinions: Callable[[Opinions], None] = lambda _: None
        self.on_alarm: Callable[[int, str, str], None] = lambda *_: None
        self._services_changed = trio.Event()
        self._of_file = pair.digests()
        self._running: dict[str, bytes] = {}

    @property
    def _asked_for(self) -> Sync | None:
        """The section of the pair file, if there is anything to sync."""
        return self._pair.sync if self._pair.virtual_routers else None

    @property
    def is_on(self) -> bool:
        """Whether the pair file asks for any."""
        return self._asked_for is not None

    def _carriers(self) -> Iterable[Carrier]:
        return (self.daemons,) if self._courier is None else (self._courier, self.daemons)

    # Life

    async def start(self, nursery: trio.Nursery, resources: ExitStack) -> None:
        """Begin to listen.

        Raises:
            HostError: the interface cannot be used.
            ConfigError: the key file cannot.
        """
        await nursery.start(self.daemons.run)
        sync = self._asked_for
        if sync is None or sync.format != "lvsha":
            return
        seal, key_file = self._seal(sync)
        transport = resources.enter_context(
            self._host.sync_transport(self._pair.nodes[self._name].interfaces[sync.interface], sync)
        )
        self._running = await self._digests()
        digest, digests = self._configuration()
        self.replicas = [
            Replica(
                tally=self._store.tally(router.sync_id),
                node=self._name,
                epoch=self._host.epoch(),
                configuration_digest=digest,
                digests=digests,
                heartbeat_interval=sync.heartbeat_interval,
                datagram_max=sync.datagram_max,
                alive_interval=(
                    None
                    if self._pair.second_path is None
                    else ALIVE_INTERVALS * router.advert_interval
                ),
                pace=Pace(bytes_per_second=sync.bytes_per_second),
                proven=seal is not None,
            )
            for router in self._pair.virtual_routers
        ]
        self._courier = Courier(
            self.replicas, transport, self._store, seal=seal, collect=self._collect
        )
        nursery.start_soon(self._report, self._courier.events)
        nursery.start_soon(self._watch_services, self._courier)
        if seal is not None and key_file is not None:
            nursery.start_soon(_watch_keys, seal, key_file)
        await nursery.start(self._courier.run)

    def _seal(self, sync: Sync) -> tuple[Seal | None, KeyFile | None]:
        if sync.key_file is None:
            _log.warning(
                "the sync link is open: whoever can send on it can inject connections; "
                "see sync.key_file"
            )
            return None, None
        key_file = KeyFile(sync.key_file)
        return Seal(key_file.load(), secrets.randbits(_SESSION_BITS)), key_file

    # Connections and roles

    def tell(self) -> None:
        """Carry the director's changes and questions to the peers, when they can leave."""
        courier = self._courier
        if courier is None or not courier.gathers or self.daemons.are_told:
            self._collect()
        if self._director.questions:
            for sync_id, keys in self._director.take_questions().items():
                if courier is not None:
                    courier.ask(sync_id, keys)

    def _collect(self) -> None:
        """Tell all that has changed, of each connection the newest."""
        if not self._director.registry.untold:
            return
        for sync_id, changes in self._director.registry.take_changes().items():
            # What belongs to no virtual router is in no replica.
            for carrier in (self.daemons,) if sync_id == NO_SYNC_ID else self._carriers():
                carrier.tell(sync_id, changes)

    def lead(self, sync_id: int) -> None:
        """This node holds the addresses of this sync id now."""
        for carrier in self._carriers():
            carrier.lead(sync_id)

    def follow(self, sync_id: int, *, stalled: bool) -> None:
        """This node holds them no more; ``stalled``: it was, and may have missed something."""
        for carrier in self._carriers():
            carrier.follow(sync_id)
            if stalled:
                carrier.resync(sync_id)

    def unready(self, sync_id: int) -> dict[str, str]:
        """Of each peer, why it cannot take over without a loss; empty words if it can."""
        return {} if self._courier is None else self._courier.unready(sync_id)

    def last_word(self, sync_id: int) -> Standing | None:
        """What the leader of a sync id has said last of what it has; None if there is none."""
        return next(
            (
                peer.standing
                for replica in self.replicas
                if replica.sync_id == sync_id
                for peer in replica.peers
                if peer.node == replica.leader
            ),
            None,
        )

    def coverage(self, sync_id: int) -> float | None:
        """The share of the established connections that some peer has; None if none can say."""
        return None if self._courier is None else self._courier.coverage(sync_id)

    def hand_over(self, sync_id: int, successor: str) -> None:
        """Call a peer to take over, when it has all that this node has; nobody, if empty."""
        if self._courier is not None:
            self._courier.hand_over(sync_id, successor)

    def say(self, sync_id: int, state: VrrpState, witness: Witness, priority: int) -> None:
        """Tell the peers what this node is for a virtual router, and what its witness says."""
        if self._courier is not None:
            self._courier.say(sync_id, Duty(state, witness, priority))

    def said(self, sync_id: int) -> list[Said]:
        """What the peers have said last of the same."""
        return [
            Said(peer.node, peer.duty.state, peer.duty.witness, peer.duty_at, peer.duty.priority)
            for replica in self.replicas
            if replica.sync_id == sync_id
            for peer in replica.peers
            if peer.duty is not None
        ]

    def share(self, number: int, checked: int, opinions: Sequence[NotUp]) -> None:
        """Tell the peers what this node's health checks find; see `lvsha.sync.opinions`."""
        if self._courier is not None:
            self._courier.share(number, checked, opinions)

    def leader(self, sync_id: int) -> str | None:
        """The node that leads a sync id, if it is another one."""
        return next((each.leader for each in self.replicas if each.sync_id == sync_id), None)

    def is_contested(self, sync_id: int) -> bool:
        """Whether another node leads a sync id that this one leads."""
        now = trio.current_time()
        return any(each.sync_id == sync_id and each.is_contested(now) for each in self.replicas)

    def complete(self, sync_id: int) -> bool:
        """Whether this node has all that the leader of this sync id has."""
        return all(carrier.complete(sync_id) for carrier in self._carriers())

    # Configuration

    def compare(self, digests: dict[str, bytes]) -> None:
        """Compare another pair file from now on: the digests of its pieces."""
        self._of_file = digests
        self.services_changed()

    def services_changed(self) -> None:
        """Take note that services have changed, and compare them anew in a moment."""
        self._services_changed.set()

    def _configuration(self) -> tuple[bytes, dict[str, bytes]]:
        digests = {**self._of_file, **self._running}
        return _digest({name: value.hex() for name, value in digests.items()}), digests

    async def _watch_services(self, courier: Courier) -> None:
        while True:
            await self._services_changed.wait()
            await trio.sleep(SETTLE)
            self._services_changed = trio.Event()
            self._running = await self._digests()
            courier.configure(*self._configuration())

    async def _digests(self) -> dict[str, bytes]:
        """A digest of every service as it runs, and another if it changes meanwhile."""
        turns = Turns()
        return {
            f"running.{service.name}": _digest(
                await _described(service, self.may_be_away(service), turns)
            )
            for service in list(self._director.services)
        }

    async def _report(self, events: trio.MemoryReceiveChannel[SyncEvent]) -> None:
        async for event in events:
            sync_id = event.sync_id
            match event.happening:
                case PeerChanged(node, state, reason):
                    _log.info(
                        "peer changed", sync_id=sync_id, peer=node, state=state.name, reason=reason
                    )
                case ConfigurationDiffers(node, names):
                    _log.error("the nodes differ", peer=node, in_=", ".join(names) or "?")
                case ConfigurationAgrees(node):
                    _log.info("the nodes agree again", peer=node)
                case Alarm(kind, node):
                    _log.error("alarm", sync_id=sync_id, kind=kind, peer=node)
                    self.on_alarm(sync_id, kind, node)
                case OpinionsHeard(message):
                    self.on_opinions(message)
                case TakeOver():
                    self._on_call(sync_id)
                case _:
                    assert_never(event.happening)

    # Observation

    def status(self) -> dict[str, object]:
        """By sync id, all that an operator may want to see, as JSON values."""
        now = trio.current_time()
        return {str(replica.sync_id): replica.status(now) for replica in self.replicas}

    def counters(self) -> dict[str, int]:
        """What the courier has counted."""
        return {} if self._courier is None else self._courier.counters.snapshot()


async def _watch_keys(seal: Seal, key_file: KeyFile) -> None:
    """Take other keys over when the file has changed."""
    trouble = ""
    while True:
        await trio.sleep(KEY_INTERVAL)
        try:
            keys = key_file.changed()
        except ConfigError as error:
            if str(error) != trouble:
                trouble = str(error)
                _log.error("the key file cannot be used; the keys stay as they were", error=trouble)
            continue
        trouble = ""
        if keys is not None:
            seal.change_keys(keys)
            _log.info("the keys of the sync link have changed", accepted=len(keys))


async def _described(
    service: VirtualService, away: Collection[tuple[bytes, int]], turns: Turns
) -> object:
    """What two nodes must agree on of a service, as JSON values."""
    servers = []
    for server in list(service.servers):
        if (server.address, server.port) not in away:
            limits = (server.upper, server.lower)
            servers.append((str(server), server.method.name, *limits, asdict(server.tunnel)))
        await turns.pass_on()
    options = service.options
    return [
        asdict(service.identity),
        (options.scheduler, sorted(options.flags), options.persistence, options.netmask),
        (options.one_packet, options.engine),
        sorted(servers, key=str),
    ]


def _digest(value: object) -> bytes:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_hexadecimal)
    return hashlib.blake2b(canonical.encode(), digest_size=DIGEST_BYTES).digest()


def _hexadecimal(value: object) -> str:
    assert isinstance(value, bytes), "all else is JSON"
    return value.hex()
