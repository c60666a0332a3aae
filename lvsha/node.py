"""Build one node of the pair and carry values between its parts.

Forwarding, sync and failover do not know of each other. They meet here:

* When a virtual router becomes MASTER, the director holds its addresses and its sync id is
  led. When it leaves MASTER, everything its backup does not know yet is told, and the
  director goes on opening connections for `TRANSITION`, because neighbours that have not
  heard of the successor still send their frames here. During that time both tell each
  connection from its first packet on.
* Changes of connections go to the replica of their sync id; what a peer tells goes to the
  director.
* A node may displace a master of lower priority only while its copy of the connection
  table is complete.
* What the health checks find becomes weights of the director's servers.
* A second path may be asked before a takeover (`lvsha.node_second_path`).
* Trackers change priorities and mean FAULT, routers of a group follow each other
  (`lvsha.node_tracking`), and a loop that does not forward any more means FAULT for all
  (`lvsha.vigil`).

One nursery holds everything. A part that fails takes the node down, and the peer takes
over.
"""

from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog
import trio

import lvsha
from lvsha import metrics
from lvsha.administration import Administration
from lvsha.build import build_director, mark_sync_ids, sync_ids
from lvsha.build_failover import (
    build_speaker,
    place_addresses,
    place_routes,
    place_rules,
    traffic_interfaces,
    virtual_macs,
)
from lvsha.config import Pair, VirtualRouter
from lvsha.connection_store import ConnectionStore
from lvsha.control import Handler, Lasting
from lvsha.datapath.service_table import describe
from lvsha.errors import ConfigError, HandoverError
from lvsha.failover.addresses import Addresses
from lvsha.failover.election import DOWN_ADVERTISEMENTS, SKEW_UNIT_OF_VERSION_2
from lvsha.failover.routes import MovingAddresses
from lvsha.failover.speaker import RouterStateChanged, Speaker
from lvsha.handover import Handover
from lvsha.host import Host
from lvsha.model import VrrpState, format_mac
from lvsha.node_health import NodeHealth
from lvsha.node_reload import RELOAD_SECONDS_MAX, NodeReload
from lvsha.node_second_path import NodeSecondPath
from lvsha.node_state import NodeState
from lvsha.node_sync import NodeSync
from lvsha.node_tracking import NodeTracking
from lvsha.preemption import Preemption
from lvsha.recorder import Recorder
from lvsha.reload import Plan
from lvsha.service_status import service_status
from lvsha.sync_daemons import SyncDaemons
from lvsha.takeover import Takeover
from lvsha.turns import Turns
from lvsha.vigil import Vigil

TRANSITION: Final = 2.0
"""Seconds after a change of master in which frames may still come to the old one, which
goes on serving them; a successor announces at once and again after a second."""
DEFAULT_FILE: Final = Path("/etc/lvsha/pair.toml")
READINESS_INTERVAL: Final = 0.1
STATE_CHANGES_MAX: Final = 64

_log = structlog.get_logger()


class Node:
    """One running director.

    Args:
        pair: the pair file.
        name: which of its nodes this is.
        host: the machine it runs on.
        file: where the pair file is read from when it has changed.

    Raises:
        ConfigError: the pair file has no such node, or names an unknown scheduler.
    """

    def __init__(self, pair: Pair, name: str, host: Host, file: Path = DEFAULT_FILE) -> None:
        if name not in pair.nodes:
            known = ", ".join(pair.nodes)
            raise ConfigError(f"nodes: expected a node called {name!r}; the file has {known}")
        self.pair = pair
        self._configuration = pair.digest().hex()
        self.name = name
        self.director = build_director(pair)
        self._host = host
        self._own = pair.nodes[name]
        self._store = ConnectionStore(
            self.director,
            sync_ids(pair),
            trio.current_time,
            mark_sync_ids(pair),
        )
        self._state = NodeState(
            name, pair.saved_state, self._store, host.state_store(name, pair.saved_state)
        )
        self.sync = NodeSync(pair, name, self.director, self._store, host, self._take_over)
        self._forwarder = host.forwarder(
            self.director,
            traffic_interfaces(pair, self._own),
            self.sync.tell,
            self._stale_after(),
            virtual_macs(pair),
        )
        self.tracking = NodeTracking(pair, name, self.director, host)
        self.health = NodeHealth(pair, name, self.director, host.prober(), self._servers_changed)
        self.sync.may_be_away = self.health.may_be_away
        self.sync.on_opinions = self.health.hear
        self.sync.on_alarm = self._alarm
        self.health.share = self.sync.share
        self.vigil = Vigil(
            self._forwarder.beat,
            host.service_manager(),
            self._stale_after(),
            lambda: self.tracking.declare(self.vigil.fault),
        )
        self.reload = NodeReload(
            pair,
            file,
            self.director,
            self.health,
            self.vigil,
            self._follow_file,
            self._servers_changed,
        )
        self._recorder = Recorder(name)
        self.second_path = NodeSecondPath(
            pair, name, host, self.sync, self.tracking, self._recorder
        )
        self._routers = {router.name: router for router in pair.virtual_routers}
        self._speakers: dict[str, Speaker] = {}
        self._routes = {
            router.name: host.routes(
                place_routes(router, self._own.interfaces),
                place_rules(router, self._own.interfaces),
            )
            for router in pair.virtual_routers
        }
        self._takeovers: dict[str, Takeover] = {}
        self._masters: set[str] = set()
        self._handover = Handover(
            self._routers,
            self._speakers,
            self._masters,
            self.sync,
            self._store.tally,
            self._begin_handover,
            lambda router: self._hold(router, held=True),
            self._priority,
            self.tracking.together,
        )
        self._settling: dict[str, trio.CancelScope] = {}
        self._contested: set[str] = set()
        self._started_at = 0.0
        self._back_up()

    # Configuration

    def _stale_after(self) -> float:
        """A standstill after which a peer may have taken the quickest router over."""
        intervals = [router.advert_interval for router in self.pair.virtual_routers]
        return min(intervals, default=1.0) * DOWN_ADVERTISEMENTS

    def _longest_skew(self) -> float:
        """Seconds: the timers of two nodes for a master differ by no more (Skew_Time)."""
        return max(
            SKEW_UNIT_OF_VERSION_2 if router.version == 2 else router.advert_interval
            for router in self.pair.virtual_routers
        )

    def _addresses(self, router: VirtualRouter) -> Addresses:
        """What a speaker moves: addresses, and routes and rules with them."""
        recorder = self._recorder
        addresses = self._host.addresses(
            place_addresses(router, self._own.interfaces),
            announce_repeat=router.announce_repeat,
            # Clients beyond a route that moves are answered once it is there.
            announce_at_once=not (router.routes or router.rules),
            mac=router.mac,
        )
        return MovingAddresses(
            recorder.addresses(router.name, addresses),
            recorder.routes(router.name, self._routes[router.name]),
        )

    def _follow_file(self, pair: Pair, plan: Plan) -> None:
        """Go by what a reload has taken over."""
        self.pair, self._own = pair, pair.nodes[self.name]
        self._configuration = plan.digest.hex()
        self._store.follow_marks(mark_sync_ids(pair))
        self.tracking.follow(self._own)
        self.sync.compare(plan.digests)

    # Life

    async def run(self, stop: trio.Event) -> None:
        """Run until ``stop``, then hand over and clean up.

        Raises:
            HostError: something that the host must have is missing.
        """
        self._started_at = trio.current_time()
        with ExitStack() as resources:
            resources.enter_context(self._host.exclusive())
            await self.clean()
            await self._state.restore()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._host.serve_control, self._commands())
                if self.pair.metrics is not None:
                    page = self._metrics
                    await nursery.start(self._host.serve_metrics, self.pair.metrics, page)
                await self.health.start(nursery)
                await nursery.start(self._forwarder.run)
                await self.sync.start(nursery, resources)
                await self.tracking.start(nursery, self._forwarder)
                nursery.start_soon(self.second_path.run)
                await self._let_a_backup_go_first(stop)
                await self.tracking.settle(stop)
                await self._start_speakers(nursery, resources)
                nursery.start_soon(self._watch_readiness)
                nursery.start_soon(self.vigil.watch, self._line)
                nursery.start_soon(self._state.save_often)
                nursery.start_soon(self.reload.run)
                self.vigil.ready()
                _log.info("director started", node=self.name, version=lvsha.__version__)
                await stop.wait()
                self.vigil.stopping()
                await self.reload.close()
                await self._hand_over()
                await self.tracking.finish()
                nursery.cancel_scope.cancel()
            try:
                with trio.CancelScope(shield=True):
                    await self.clean()
            finally:
                await self._state.save()
        connections = len(self.director.registry.table)
        _log.info("director stopped", connections=connections, drops=self._drops())

    def _commands(self) -> dict[str, Handler]:
        """What the control socket answers."""
        administration = Administration(
            self.director,
            trio.current_time,
            self._services_changed,
            SyncDaemons(self.sync.daemons, self.director),
        )
        return {
            "status": Lasting(lambda _arguments: self.status()),
            "why": self._why,
            "handover": Lasting(self._handover.command),
            "reload": Lasting(self.reload.command, RELOAD_SECONDS_MAX),
            **administration.commands(),
        }

    def _services_changed(self) -> None:
        self._servers_changed()
        self.health.services_changed()

    def _servers_changed(self) -> None:
        self._forwarder.services_changed()
        self.sync.services_changed()

    async def clean(self) -> None:
        """Take away what a run leaves on the host.

        Raises:
            HostError: the kernel refuses.
        """
        routers = self.pair.virtual_routers
        await self._host.clean(
            [
                address
                for router in routers
                for address in place_addresses(router, self._own.interfaces)
            ]
        )

    async def _let_a_backup_go_first(self, stop: trio.Event) -> None:
        """Listen until a peer has noticed that this node was away.

        Who comes back before has lost its connections, and the peer has a copy; it takes over
        if this node listens for longer than the peer's timer is longer than its own.
        """
        if self.sync.is_on:
            with trio.move_on_after(self._longest_skew()):
                await stop.wait()

    async def _start_speakers(self, nursery: trio.Nursery, resources: ExitStack) -> None:
        sender, receiver = trio.open_memory_channel[RouterStateChanged](STATE_CHANGES_MAX)
        nursery.start_soon(self._follow_elections, receiver)
        for router in self.pair.virtual_routers:
            transport = resources.enter_context(
                self._host.advertisement_transport(
                    self._own.interfaces[router.interface], router, self._all_virtual()
                )
            )
            speaker = build_speaker(
                router,
                self._own.priority_of(router.name),
                transport,
                self._addresses(router),
                sender,
                on_change=self._state_changed,
                on_due=self.second_path.due,
                on_rival=self._two_masters,
            )
            self._speakers[router.name] = speaker
            self.tracking.adopt(router.name, speaker)
            self.second_path.adopt(speaker)
            self._takeovers[router.name] = takeover = self._takeover(speaker, router, resources)
            nursery.start_soon(takeover.run)
            if not self.sync.is_on:
                speaker.permit_preemption(permitted=True)
            await nursery.start(speaker.run)

    def _takeover(self, speaker: Speaker, router: VirtualRouter, resources: ExitStack) -> Takeover:
        """What sees a takeover through, with its ears on every interface of the addresses."""
        on: dict[str, list[bytes]] = {}
        for one in place_addresses(router, self._own.interfaces):
            on.setdefault(one.interface, []).append(one.address.ip.packed)
        listeners = [
            resources.enter_context(self._host.rival_listener(interface, addresses))
            for interface, addresses in on.items()
        ]
        addresses = self._virtual(router.name)
        return Takeover(speaker, addresses, self.director, listeners, self._recorder)

    async def _hand_over(self) -> None:
        """Leave all addresses to others, and serve who has not noticed for a while longer."""
        was_master = bool(self._masters)
        led = {self._routers[name].sync_id for name in self._masters}
        for sync_id in led if self.sync.is_on else ():
            if sync_id not in {self._routers[name].sync_id for name in self._masters}:
                # It has gone with another of its group.
                continue
            try:
                await self._handover.hand_over(sync_id)
            except HandoverError as error:
                # Everything was told all the same; a backup takes over when this node resigns.
                _log.warning("no successor was ready", reason=str(error))
        async with trio.open_nursery() as nursery:
            for speaker in self._speakers.values():
                nursery.start_soon(speaker.stop)
        if was_master and len(self.pair.nodes) > 1:
            await trio.sleep(self._longest_skew() + TRANSITION)

    # Connections

    async def _tell_everything(self, routers: Collection[str]) -> None:
        """Tell what the backup does not know, half-open connections too."""
        turns = Turns()
        for _ in self.director.registry.tell_all({self._routers[one].sync_id for one in routers}):
            self.sync.tell()
            await turns.pass_on()
        self.sync.tell()

    def _priority(self, node: str, router: str) -> int:
        known = self.pair.nodes.get(node)
        return 0 if known is None else known.priority_of(router)

    async def _begin_handover(self, routers: Collection[str]) -> None:
        """Let both nodes know each connection from now on, half-open ones too."""
        for router in routers:
            self._hold(router, held=True, in_transition=True)
        await self._tell_everything(routers)

    def _virtual(self, router: str) -> set[bytes]:
        return {placed.address.ip.packed for placed in self._routers[router].addresses}

    def _all_virtual(self) -> frozenset[bytes]:
        return frozenset().union(*map(self._virtual, self._routers))

    def _back_up(self) -> None:
        """Say for which addresses another node is the master (``backup_only``)."""
        backup_of = {
            a for name in self._routers if name not in self._masters for a in self._virtual(name)
        }
        self.director.back_up(frozenset(backup_of))

    def _hold(self, router: str, *, held: bool, in_transition: bool = False) -> None:
        for address in self._virtual(router):
            self.director.hold(address, held=held, in_transition=in_transition)
        self._forwarder.listen_to(self._routers[router].mac, held=held)

    # Elections

    def _state_changed(self, change: RouterStateChanged) -> None:
        self.second_path.state_changed(change)
        self.tracking.state_changed(change)

    def _two_masters(self, router: str, address: str, priority: int) -> None:
        self._recorder.note("two_masters", router, address=address, priority=priority)
        self.tracking.events.publish(
            "two_masters", router=router, address=address, priority=priority
        )

    def _alarm(self, sync_id: int, kind: str, peer: str) -> None:
        for router in (one.name for one in self._routers.values() if one.sync_id == sync_id):
            self._recorder.note("alarm", router, alarm=kind, peer=peer)
        self.tracking.events.publish("alarm", sync_id=sync_id, alarm=kind, peer=peer)

    async def _follow_elections(
        self, changes: trio.MemoryReceiveChannel[RouterStateChanged]
    ) -> None:
        async with trio.open_nursery() as nursery:
            async for change in changes:
                self._recorder.changed(change, self._speakers[change.router].election)
                if VrrpState.MASTER not in {change.old, change.new}:
                    continue
                if change.new is VrrpState.MASTER:
                    self._become_master(change.router)
                else:
                    self._leave_master(change)
                    nursery.start_soon(self._tell_the_rest, change.router)
                nursery.start_soon(self._settle, change)

    def _become_master(self, router: str) -> None:
        self._masters.add(router)
        self._hold(router, held=True, in_transition=True)
        self._back_up()
        self._takeovers[router].begin()
        sync_id = self._routers[router].sync_id
        complete, before = self.sync.complete(sync_id), self.sync.last_word(sync_id)
        tally = self._store.tally(sync_id)
        self._recorder.carried(router, tally, complete=complete, before=before)
        alone = self._speakers[router].election.peer is None
        self._store.settle_restored(sync_id, alone=alone)
        self.sync.lead(sync_id)

    def _take_over(self, sync_id: int) -> None:
        """The master of a sync id wants this node to be it, and this node has all that it has."""
        for name, speaker in self._speakers.items():
            if self._routers[name].sync_id == sync_id:
                speaker.take_over()

    def _leave_master(self, change: RouterStateChanged) -> None:
        router, sync_id = change.router, self._routers[change.router].sync_id
        self._masters.discard(router)
        self._takeovers[router].end()
        # After a stall the peer has been master for long; what comes here now is a stray.
        stalled = change.reason == "stalled"
        self._hold(router, held=not stalled, in_transition=not stalled)
        # At once, for until then the copy counts as complete, and another leader as a second.
        self.sync.follow(sync_id, stalled=stalled)
        self._handover.left()

    async def _tell_the_rest(self, router: str) -> None:
        """While the sync drains, tell the next leader what this node was still to tell."""
        await self._tell_everything([router])
        self._recorder.told(router, self._store.tally(self._routers[router].sync_id))

    async def _settle(self, change: RouterStateChanged) -> None:
        """End the transition, unless another has begun meanwhile."""
        settling = trio.CancelScope()
        previous = self._settling.get(change.router)
        if previous is not None:
            previous.cancel()
        self._settling[change.router] = settling
        with settling:
            await trio.sleep(TRANSITION)
            held, is_contested = change.new is VrrpState.MASTER, change.router in self._contested
            self._hold(change.router, held=held, in_transition=is_contested)

    async def _watch_readiness(self) -> None:
        """Permit preemption while the copy of the connection table is complete."""
        if not self.sync.is_on:
            return
        preemption = Preemption(
            self._routers,
            self._speakers,
            self._masters,
            self.tracking.together,
            self.sync,
            lambda: self.director.add_chore(self.director.warm_ways()),
            self._recorder,
            trio.current_time(),
        )
        while True:
            await self._note_contests()
            preemption.look(trio.current_time())
            await trio.sleep(READINESS_INTERVAL)

    async def _note_contests(self) -> None:
        """Tell each connection from its first packet on while another node is MASTER, too.

        Neither hears the other's advertisements; neighbours send to either in turn.
        """
        now_contested = {
            one for one in self._masters if self.sync.is_contested(self._routers[one].sync_id)
        }
        for router in (self._contested & self._masters) - now_contested:
            self._hold(router, held=True)
        begun = now_contested - self._contested
        self._contested = now_contested
        if begun:
            await self._begin_handover(begun)

    # Observation

    def _line(self) -> str:
        """What this node is, for the service manager."""
        states = [f"{s.name} {s.election.state.name}" for s in self._speakers.values()]
        return f"{', '.join(states) or 'no virtual router'}; services: {len(self.pair.services)}"

    def _why(self) -> dict[str, object]:
        return self._recorder.export(self._speakers.values(), self.vigil)

    async def _metrics(self) -> bytes:
        # In a thread: ten thousand servers take some hundred milliseconds.
        return await trio.to_thread.run_sync(metrics.render, await self.status())

    async def status(self) -> dict[str, object]:
        """Everything ``lvsha status`` shows, as JSON-able values.

        Services are gone through in turns with the forwarding, so that the last is told of
        some milliseconds after the first.
        """
        director, turns = self.director, Turns()
        services = {
            service.name: await service_status(service, director, self.health, turns)
            for service in list(director.services)
        }
        for service in director.services.leaving.by_service():
            if director.services.get(service.identity) is not service:
                name = f"{describe(service.identity)}, leaving"
                services[name] = await service_status(service, director, None, turns)
        return {
            "node": self.name,
            "version": lvsha.__version__,
            "uptime_seconds": trio.current_time() - self._started_at,
            "configuration": self._configuration,
            "routers": {
                name: {
                    **self._router_status(name),
                    **self.tracking.router_status(name),
                    **self.second_path.router_status(name),
                    "routes": self._routes[name].status(),
                    "virtual_mac": None if router.mac is None else format_mac(router.mac),
                }
                for name, router in self._routers.items()
            },
            "tracking": self.tracking.status(),
            "second_path": self.second_path.status(),
            "sync": self.sync.status(),
            "daemons": self.sync.daemons.status(),
            "services": services,
            "connections": len(director.registry.table),
            "life": self.vigil.status(),
            "takeovers": {name: one.status() for name, one in self._takeovers.items()},
            "drops": self._drops(),
            "surprises": self._forwarder.surprises.status(),
            "counters": {
                "forwarder": self._forwarder.counters.snapshot(),
                "records": self._store.counters.snapshot(),
                "state": self._state.counters.snapshot(),
                "sync": self.sync.counters(),
                "health": self.health.counted(),
                "reload": self.reload.counters.snapshot(),
            },
        }

    def _router_status(self, name: str) -> dict[str, object]:
        """What a virtual router is; INIT while the node listens before it takes part."""
        speaker = self._speakers.get(name)
        if speaker is not None:
            return speaker.status()
        router = self._routers[name]
        return {
            "router": name,
            "vrid": router.vrid,
            "version": router.version,
            "state": VrrpState.INIT.name,
            "priority": self._own.priority_of(name),
            "interval_seconds": router.advert_interval,
            "fault": None,
            "peer": None,
        }

    def _drops(self) -> dict[str, int]:
        return {reason.name.lower(): n for reason, n in sorted(self.director.drops.items())}
