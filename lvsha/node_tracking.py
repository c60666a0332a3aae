"""Let trackers and groups move a node's virtual routers, and tell of every change.

`lvsha.failover.tracking` decides; this keeps the readings coming, carries priorities and
faults to the speakers, lets the routers of a group follow each other in the step in which one
of them changes, and passes events to programs and readers.

The interfaces that a virtual router needs are tracked whether the pair file says so or not: a
link that is down means FAULT. So does one where the speaker can hear and tell nobody, and one that
was replaced by another of its name.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, assert_never

import structlog
import trio

from lvsha.config import Node, Pair, VirtualRouter
from lvsha.config_tracking import Notify, Track, Tracker
from lvsha.datapath.director import Director
from lvsha.errors import HostError
from lvsha.events import EventStream
from lvsha.failover.speaker import RouterStateChanged, Speaker
from lvsha.failover.tracking import (
    Actions,
    FaultChanged,
    Group,
    PriorityChanged,
    Reading,
    RouterRule,
    Tracked,
    TrackerChanged,
    TrackerRule,
    Tracking,
    joint_state,
)
from lvsha.host import FrameForwarder, Host
from lvsha.model import VrrpState, Witness
from lvsha.notifications import WORDS, Change, Notifications, Receiver
from lvsha.tracking.probes import Probe
from lvsha.tracking.tables import read_interface, read_quorum, read_route

FIRST_READINGS_MAX: Final = 5.0
"""So long the elections wait for trackers of which nothing is known yet."""
FINISH_MAX: Final = 3.0
"""So long a node that stops waits for the programs that it has told."""
_POLL: Final = 0.02
_NODE: Final = "the node"
"""A tracker of every virtual router, for what `NodeTracking.declare` is told."""
RETRY_INTERVAL: Final = 0.5
"""Between two attempts to speak on an interface that does not change."""
_REST_MIN: Final = 0.01
"""Between two looks, where one took as long as the interval."""

_log = structlog.get_logger()

Read = Callable[[], Reading]


class NodeTracking:
    """Trackers, groups and events of one node.

    Args:
        pair: the pair file.
        name: which of its nodes this is.
        director: whose network and services are read.
        host: makes probes, runs programs, serves events.
    """

    def __init__(self, pair: Pair, name: str, director: Director, host: Host) -> None:
        self._pair = pair
        self._name = name
        self._interfaces = pair.nodes[name].interfaces
        self._director = director
        self._host = host
        self._virtual = frozenset(
            placed.address.ip.packed
            for router in pair.virtual_routers
            for placed in router.addresses
        )
        self._groups = [Group(group.name, group.routers) for group in pair.groups]
        self._group_of = {router: group for group in self._groups for router in group.routers}
        self._speakers: dict[str, Speaker] = {}
        self._states: dict[str, VrrpState] = {}
        self._stopped: set[str] = set()
        self._group_states = dict.fromkeys((group.name for group in self._groups), "INIT")
        self._needs = {router.name: self._needed(router) for router in pair.virtual_routers}
        self._settled_at = 0.0
        # By virtual router: where it speaks, and what that was when it was looked at last (the
        # number and the own addresses). Some cannot be heard there.
        self._speaks_on = {
            router.name: self._interfaces[router.interface] for router in pair.virtual_routers
        }
        self._places: dict[str, tuple[int, frozenset[bytes]] | None] = {}
        self._silent: set[str] = set()
        # Of virtual routers that may be given up because this node is cut off.
        self._path_trackers = {
            router.name: f"second path of {router.name}"
            for router in (() if pair.second_path is None else pair.virtual_routers)
        }
        self._witness = None if pair.second_path is None else pair.second_path.witness
        self._core = self._make_core()
        self._reads: dict[str, Read] = dict(self._own_readings())
        self.events = EventStream(self._present)
        self.notifications = Notifications(
            self._receivers(), host.run_program, {"LVSHA_NODE": name}
        )

    # From the pair file

    def _needed(self, router: VirtualRouter) -> list[str]:
        """The interfaces that a virtual router cannot be without."""
        roles = [router.interface, *(placed.interface for placed in router.addresses)]
        return list(dict.fromkeys(self._interfaces[role] for role in roles))

    def _make_core(self) -> Tracking:
        pair, node = self._pair, self._pair.nodes[self._name]
        group_tracks = {router: group.track for group in pair.groups for router in group.routers}
        needed = dict.fromkeys(name for names in self._needs.values() for name in names)
        return Tracking(
            [
                TrackerRule(_NODE),
                *(TrackerRule(_link_tracker(name)) for name in needed),
                *(TrackerRule(_speech_tracker(router.name)) for router in pair.virtual_routers),
                *(TrackerRule(name) for name in self._path_trackers.values()),
                *(
                    TrackerRule(one.name, one.rise, one.fall, one.init_fail, one.numeric)
                    for one in pair.trackers
                ),
            ],
            [
                RouterRule(
                    router.name,
                    node.priority_of(router.name),
                    (
                        Tracked(_NODE),
                        *(Tracked(_link_tracker(name)) for name in self._needs[router.name]),
                        Tracked(_speech_tracker(router.name)),
                        *map(Tracked, self._path_tracker_of(router.name)),
                        *map(_tracked, router.track),
                        *map(_tracked, group_tracks.get(router.name, ())),
                    ),
                )
                for router in pair.virtual_routers
            ],
            [group.routers for group in pair.groups],
        )

    def _path_tracker_of(self, router: str) -> list[str]:
        tracker = self._path_trackers.get(router)
        return [] if tracker is None else [tracker]

    def _own_readings(self) -> Iterator[tuple[str, Read]]:
        """The trackers that look at the director's own tables."""
        for name in dict.fromkeys(name for names in self._needs.values() for name in names):
            yield _link_tracker(name), self._interface_reader(name, ())
        for tracker in self._pair.trackers:
            read = self._reader(tracker)
            if read is not None:
                yield tracker.name, read

    def _reader(self, tracker: Tracker) -> Read | None:
        network, services = self._director.network, self._director.services
        interface = self._interface(tracker)
        match tracker.kind:
            case "interface":
                assert interface is not None
                return self._interface_reader(interface, tracker.families)
            case "route":
                prefix, via = tracker.prefix, tracker.via
                assert prefix is not None
                shown = f"{prefix} via {via}" if via is not None else str(prefix)
                return lambda: read_route(
                    network,
                    prefix.network_address.packed,
                    prefix.prefixlen,
                    via=b"" if via is None else via.packed,
                    interface=interface,
                    shown=shown,
                )
            case "quorum":
                return lambda: read_quorum(
                    services, tracker.services, servers=tracker.servers, share=tracker.share
                )
            case "gateway" | "script" | "file" | "process":
                return None
            case _:
                assert_never(tracker.kind)

    def _interface_reader(self, name: str, families: tuple[int, ...]) -> Read:
        network = self._director.network
        return lambda: read_interface(network, name, families, self._virtual)

    def _interface(self, tracker: Tracker) -> str | None:
        return None if tracker.interface is None else self._interfaces[tracker.interface]

    def _receivers(self) -> Iterator[Receiver]:
        for router in self._pair.virtual_routers:
            if router.notify is not None:
                yield _receiver(router.notify, ("INSTANCE", router.name))
        for group in self._pair.groups:
            if group.notify is not None:
                yield _receiver(group.notify, ("GROUP", group.name))
        if self._pair.events.notify is not None:
            yield _receiver(self._pair.events.notify, None)

    # Life

    async def start(self, nursery: trio.Nursery, forwarder: FrameForwarder) -> None:
        """Start to look, once the director knows the host's network.

        Raises:
            HostError: a user or a group is missing on this machine.
        """
        self._settled_at = trio.current_time() + FIRST_READINGS_MAX
        self._core.start(trio.current_time())
        scripts = {one.user for one in self._pair.trackers if one.kind == "script"}
        for user in self.notifications.users | scripts:
            await self._host.check_user(user)
        events = self._pair.events
        if events.socket:
            await nursery.start(self._host.serve_events, self.events, events.socket_group)
        nursery.start_soon(self.notifications.run)
        self.declare(None)
        for router in self._path_trackers:
            self.give_up(router, None)
        for router in self._speaks_on:
            self._report(_speech_tracker(router), Reading(up=True))
        for name, read in self._reads.items():
            self._report(name, read())
        for tracker in self._pair.trackers:
            own = self._reads.get(tracker.name)
            if own is None:
                probe = self._host.probe(tracker, self._interface(tracker), self._virtual)
                nursery.start_soon(self._keep_looking, tracker, probe)
            elif tracker.kind == "quorum" or max(tracker.rise, tracker.fall) > 1:
                nursery.start_soon(self._keep_reading, tracker, own)
        nursery.start_soon(self._follow_network, forwarder)
        nursery.start_soon(self._speak_again)

    async def settle(self, stop: trio.Event) -> None:
        """Wait until something is known of every tracker, for a bounded time."""
        while not stop.is_set() and trio.current_time() < self._settled_at:
            if all(self._core.is_up(tracker.name) is not None for tracker in self._pair.trackers):
                return
            await trio.sleep(_POLL)

    async def finish(self) -> None:
        """Let the programs hear of the end, for a bounded time."""
        await self.notifications.finish(FINISH_MAX)

    def adopt(self, router: str, speaker: Speaker) -> None:
        """Take charge of a speaker that does not run yet."""
        self._speakers[router] = speaker
        self._states[router] = speaker.election.state
        group = self._group_of.get(router)
        if group is not None:
            members = [self._speakers[name] for name in group.routers if name in self._speakers]
            for member in members:
                others = (one.election for one in members if one is not member)
                member.election.companions = tuple(others)
        self._perform(self._core.standing(router))
        self._follow_interface(router)

    def declare(self, fault: str | None) -> None:
        """Say what keeps the whole node from holding any address; None for nothing."""
        self._report(_NODE, Reading(up=fault is None, detail=fault or ""))

    def give_up(self, router: str, fault: str | None) -> None:
        """Say why a virtual router is left to others, with those of its group; None for no more."""
        tracker = self._path_trackers[router]
        self._report(tracker, Reading(up=fault is None, detail=fault or ""))

    @property
    def witness(self) -> Witness:
        """What this node finds of its witness."""
        if self._witness is None:
            return Witness.NONE
        match self._core.is_up(self._witness):
            case None:
                return Witness.UNKNOWN
            case up:
                return Witness.REACHABLE if up else Witness.UNREACHABLE

    def together(self, router: str) -> tuple[str, ...]:
        """The virtual routers that move with one, itself among them."""
        group = self._group_of.get(router)
        return (router,) if group is None else group.routers

    def follow(self, node: Node) -> None:
        """Take part with the priorities that the pair file gives this node now."""
        for router in self._needs:
            self._perform(self._core.configure(router, node.priority_of(router)))

    # Readings

    async def _keep_looking(self, tracker: Tracker, probe: Probe) -> None:
        while True:
            began = trio.current_time()
            self._report(tracker.name, await probe.look())
            rest = began + tracker.seconds_between - trio.current_time()
            await trio.sleep(max(rest, _REST_MIN))

    async def _keep_reading(self, tracker: Tracker, read: Read) -> None:
        while True:
            await trio.sleep(tracker.seconds_between)
            # Without any link the mirror is just being read anew, and says nothing.
            if self._director.network.links:
                self._report(tracker.name, read())

    async def _follow_network(self, forwarder: FrameForwarder) -> None:
        while True:
            # Without any link the mirror is just being read anew, and says nothing.
            if self._director.network.links:
                # These first: a link that is back ends a fault, and they must hear by then.
                for router in self._speakers:
                    self._follow_interface(router)
                for name, read in self._reads.items():
                    self._report(name, read(), in_turn=False)
            await forwarder.network_changed()

    async def _speak_again(self) -> None:
        while True:
            await trio.sleep(RETRY_INTERVAL)
            if self._director.network.links:
                for router in list(self._silent):
                    self._follow_interface(router, again=True)

    def _follow_interface(self, router: str, *, again: bool = False) -> None:
        """Let a speaker follow its interface; as long as it cannot, that is a fault."""
        speaker, name = self._running(router), self._speaks_on[router]
        if speaker is None:
            return
        network = self._director.network
        link = network.link_named(name)
        if link is not None and not link.up:
            # That is a fault anyway. What it has is looked at anew when it is up.
            self._places.pop(router, None)
            return
        own = frozenset(network.addresses(link.index)) - self._virtual if link else frozenset()
        place = None if link is None else (link.index, own)
        if not again and router in self._places and self._places[router] == place:
            return
        self._places[router] = place
        tracker = _speech_tracker(router)
        try:
            replaced = speaker.refresh()
        except HostError as error:
            self._silent.add(router)
            self._report(tracker, Reading(up=False, detail=str(error)))
            return
        self._silent.discard(router)
        if replaced:
            # It was removed in between, and what was held and said there is lost.
            self._report(tracker, Reading(up=False, detail=f"interface {name} was replaced"))
        self._report(tracker, Reading(up=True))

    def _report(self, tracker: str, reading: Reading, *, in_turn: bool = True) -> None:
        self._perform(self._core.report(tracker, reading, trio.current_time(), in_turn=in_turn))

    def _perform(self, actions: Actions) -> None:
        for action in actions:
            match action:
                case TrackerChanged(tracker, up, detail, number):
                    state = "up" if up else "down"
                    _log.info("tracker changed", tracker=tracker, state=state, detail=detail)
                    self.events.publish(
                        "tracker", tracker=tracker, state=state, detail=detail, number=number
                    )
                case PriorityChanged(router, priority):
                    self._change_priority(router, priority)
                case FaultChanged(router, fault):
                    self._change_fault(router, fault)
                case _:
                    assert_never(action)

    def _change_priority(self, router: str, priority: int) -> None:
        speaker = self._running(router)
        if speaker is None or speaker.election.priority == priority:
            return
        _log.info("priority changed", router=router, priority=priority)
        self.events.publish("priority", router=router, priority=priority)
        speaker.change_priority(priority)

    def _change_fault(self, router: str, fault: str | None) -> None:
        speaker = self._running(router)
        if speaker is None or speaker.election.fault_reason == fault:
            return
        self.events.publish("fault", router=router, fault=fault)
        if fault is None:
            speaker.recover()
        else:
            speaker.fault(fault)

    def _running(self, router: str) -> Speaker | None:
        """A speaker that still takes part; one that has stopped is left alone."""
        return None if router in self._stopped else self._speakers.get(router)

    # States

    def state_changed(self, change: RouterStateChanged) -> None:
        """Called by a speaker in the step in which its state changes; never waits."""
        self._states[change.router] = change.new
        if change.reason == "stopped":
            self._stopped.add(change.router)
        self.events.publish(
            "state",
            router=change.router,
            old=change.old.name,
            new=change.new.name,
            reason=change.reason,
            priority=self._speakers[change.router].election.priority,
        )
        self._notify("INSTANCE", change.router, WORDS[change.new], change.router)
        group = self._group_of.get(change.router)
        if group is None:
            return
        self._lead(group, change)
        self._update_group(group)

    def _lead(self, group: Group, change: RouterStateChanged) -> None:
        """Let the others of a group follow; a node that stops stops them all by itself."""
        if VrrpState.MASTER not in {change.old, change.new} or change.new is VrrpState.INIT:
            return
        if change.new is VrrpState.FAULT and self._core.fault_of(change.router) is not None:
            # It is the fault of all of them, and each is told.
            return
        entered = change.new is VrrpState.MASTER
        for name in group.followers(change.router, entered=entered, is_master=self._is_master):
            if name in self._speakers:
                self._speakers[name].join(VrrpState.MASTER if entered else VrrpState.BACKUP)

    def _is_master(self, router: str) -> bool:
        return self._states.get(router) is VrrpState.MASTER

    def _update_group(self, group: Group) -> None:
        states = {name: self._states.get(name, VrrpState.INIT).name for name in group.routers}
        state = joint_state(states)
        if state == self._group_states[group.name]:
            return
        old, self._group_states[group.name] = self._group_states[group.name], state
        _log.info("group changed", group=group.name, old=old, new=state)
        self.events.publish("group", group=group.name, old=old, new=state)
        self._notify("GROUP", group.name, WORDS[VrrpState[state]], group.routers[0])

    def _notify(self, kind: str, name: str, word: str, router: str) -> None:
        priority = self._speakers[router].election.priority if router in self._speakers else 0
        self.notifications.tell(Change(kind, name, word, priority))

    # Observation

    def _present(self) -> Mapping[str, object]:
        """What a new reader of events is told first."""
        return {
            "node": self._name,
            "routers": {
                name: {
                    "state": self._states[name].name,
                    "priority": speaker.election.priority,
                    "fault": speaker.election.fault_reason,
                }
                for name, speaker in self._speakers.items()
            },
            "groups": dict(self._group_states),
            "trackers": {
                name: tracker["state"]
                for name, tracker in self._core.status(trio.current_time()).items()
            },
        }

    def router_status(self, router: str) -> dict[str, object]:
        """What the trackers make of a virtual router, as JSON-able values."""
        said = self._core.router_status()[router]
        return {
            "configured_priority": said["configured_priority"],
            "tracks": said["tracks"],
            "group": self._group_of[router].name if router in self._group_of else None,
        }

    def status(self) -> dict[str, object]:
        """Trackers, groups and events, as JSON-able values."""
        kinds: dict[str, str] = dict.fromkeys(self._path_trackers.values(), "second_path")
        kinds |= dict.fromkeys(map(_speech_tracker, self._speaks_on), "advertisements")
        kinds |= {tracker.name: tracker.kind for tracker in self._pair.trackers}
        return {
            "trackers": {
                name: {
                    "kind": kinds.get(name, "node" if name == _NODE else "interface"),
                    **tracker,
                }
                for name, tracker in self._core.status(trio.current_time()).items()
            },
            "groups": {
                group.name: {
                    "state": self._group_states[group.name],
                    "routers": list(group.routers),
                }
                for group in self._groups
            },
            "events": self.events.status(),
            "notifications": self.notifications.status(),
        }


def _link_tracker(interface: str) -> str:
    """The name of a tracker that no pair file can give."""
    return f"interface {interface}"


def _speech_tracker(router: str) -> str:
    return f"advertisements of {router}"


def _tracked(track: Track) -> Tracked:
    return Tracked(track.tracker, track.weight, track.reverse)


def _receiver(notify: Notify, about: tuple[str, str] | None) -> Receiver:
    return Receiver(notify.command, notify.user, notify.timeout, frozenset(notify.states), about)
