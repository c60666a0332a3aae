"""This version against what released versions of the sync protocol have said."""

from typing import Any

import msgpack
import pytest

from lvsha.model import ConnectionChange, ConnectionChanged, ConnectionEnded
from lvsha.sync.actions import (
    Action,
    Apply,
    BeginSnapshot,
    EndSnapshot,
    Forget,
    ProvideSnapshot,
    Refused,
    Send,
)
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.messages import LEVEL_PLAIN, Heartbeat, MessageType
from lvsha.sync.pace import Pace
from lvsha.sync.replica import Replica
from lvsha.sync.seal import Seal
from tests.replicas import Table
from tests.vectors.sync_recordings import LEVEL_2, Recording, load, meaning, plain, record_of

PLAIN = load("sync-0.1.0")
GROUPED = load(LEVEL_2)
COUNTED = {
    MessageType.RECORDS,
    MessageType.SNAPSHOT_BEGIN,
    MessageType.SNAPSHOT_CHUNK,
    MessageType.SNAPSHOT_END,
}
"""What is numbered, of version 0.1.0."""


def body(datagram: bytes) -> list[Any]:
    elements: list[Any] = msgpack.unpackb(datagram[4:])
    return elements


def numbers(recording: Recording) -> list[int]:
    return list(range(len(recording.datagrams)))


# --- version 0.1.0 ----------------------------------------------------------------------------


def test_the_recording_of_0_1_0_has_every_message_that_it_knew() -> None:
    kinds = {body(datagram)[0] for datagram in PLAIN.datagrams}
    assert kinds == set(range(MessageType.HEARTBEAT, MessageType.CONFIGURATION + 1))


@pytest.mark.parametrize("number", numbers(PLAIN))
def test_what_0_1_0_said_is_understood(number: int) -> None:
    message = decode(PLAIN.datagrams[number])
    understood = meaning(message)
    assert {name: understood[name] for name in PLAIN.meanings[number]} == PLAIN.meanings[number]
    if isinstance(message, Heartbeat):
        assert (message.level, message.speaks) == (LEVEL_PLAIN, LEVEL_PLAIN)


@pytest.mark.parametrize("number", numbers(PLAIN))
def test_what_0_1_0_said_is_still_said_so_with_what_was_added_at_the_end(number: int) -> None:
    recorded = PLAIN.datagrams[number]
    said = encode(decode(recorded), LEVEL_PLAIN)
    assert body(said)[: len(body(recorded))] == body(recorded)
    if body(recorded)[0] != MessageType.SNAPSHOT_REQUEST:
        assert said == recorded


class Actor:
    """This version in the place of one node of a recorded conversation."""

    def __init__(self, recording: Recording, name: str) -> None:
        self.recording = recording
        self.name = name
        rest, node = recording.rest, recording.rest["nodes"][name]
        self.table = Table(map(record_of, node["first"]), rest["sync_id"])
        self.replica = Replica(
            tally=self.table.tally,
            node=name,
            epoch=node["epoch"],
            configuration_digest=bytes.fromhex(node["digest"]),
            digests={piece: bytes.fromhex(d) for piece, d in node["digests"].items()},
            heartbeat_interval=rest["heartbeat_interval"],
            datagram_max=rest["datagram_max"],
            pace=Pace(
                # What 0.1.0 did not do yet is not done here.
                snapshot_datagrams_per_tick=rest["snapshot_datagrams_per_tick"],
                eager_datagrams_max=64,
                live_datagrams_per_tick=64,
                tail_waits=(),
            ),
        )
        self.sent: list[bytes] = []
        self.now = 0.0

    def play(self) -> None:
        """Do all that the node did; what its peer said is what it had said then."""
        for step in self.recording.steps:
            if step["node"] == self.name:
                self.now = step["at"]
                self.perform(self.take(step))

    def take(self, step: dict[str, Any]) -> list[Action]:
        replica, now = self.replica, self.now
        match step["call"]:
            case "start":
                return replica.start(now)
            case "stop":
                return replica.stop(now)
            case "lead":
                return replica.lead(now)
            case "follow":
                return replica.follow(now)
            case "expire":
                return replica.expire(now)
            case "receive":
                return replica.receive(self.recording.datagrams[step["datagram"]], now)
            case "tell":
                return replica.tell([self.change(change) for change in step["changes"]], now)
            case other:
                raise AssertionError(f"an unknown step: {other}")

    def change(self, change: str | list[Any]) -> ConnectionChange:
        if isinstance(change, str):
            self.table.drop(bytes.fromhex(change))
            return ConnectionEnded(bytes.fromhex(change))
        record = record_of(change)
        self.table.apply([record])
        return ConnectionChanged(record)

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self.sent.append(action.datagram)
                case Apply():
                    self.table.apply(action.records)
                case Forget():
                    self.table.forget(action.keys)
                case BeginSnapshot():
                    self.table.begin_all(action.buckets)
                case EndSnapshot():
                    self.table.end_all(action.buckets)
                case ProvideSnapshot():
                    records = self.table.records_of(action.buckets)
                    self.perform(self.replica.snapshot(records, self.now))
                case Refused():
                    raise AssertionError(action.reason)
                case _:
                    pass


def recorded_of(recording: Recording, name: str) -> list[bytes]:
    """What a node sent."""
    return [
        recording.datagrams[number]
        for step in recording.steps
        if step["node"] == name
        for number in step["sent"]
    ]


def numbered(datagrams: list[bytes]) -> list[bytes]:
    """Those with a number of their own, once each: 0.1.0 did not know why to say one again."""
    once = dict.fromkeys(datagrams)
    return [datagram for datagram in once if body(datagram)[0] in COUNTED]


@pytest.mark.parametrize("name", ["east", "west"])
def test_in_the_place_of_a_node_of_0_1_0_this_version_tells_the_same_bytes(name: str) -> None:
    actor = Actor(PLAIN, name)
    actor.play()
    recorded = recorded_of(PLAIN, name)
    assert numbered(recorded) == numbered(actor.sent)
    assert {body(d)[0] for d in actor.sent} <= {body(d)[0] for d in recorded}, (
        "nothing is said that 0.1.0 does not know"
    )
    alive = [body(d)[:12] for d in actor.sent if body(d)[0] == MessageType.HEARTBEAT]
    was_alive = [body(d) for d in recorded if body(d)[0] == MessageType.HEARTBEAT]
    assert alive == was_alive


@pytest.mark.parametrize("name", ["east", "west"])
def test_in_the_place_of_a_node_of_0_1_0_this_version_has_the_same_connections(name: str) -> None:
    actor = Actor(PLAIN, name)
    actor.play()
    records = sorted(plain(record) for record in actor.table.content.values())
    assert records == PLAIN.rest["nodes"][name]["last"]
    assert actor.replica.counters["datagrams_lost"] == 0


def test_a_follower_of_a_leader_of_0_1_0_reaches_its_state() -> None:
    actor = Actor(PLAIN, "west")
    states: list[object] = []
    for step in PLAIN.steps:
        if step["node"] != "west":
            continue
        if step["call"] == "lead":
            break
        actor.now = step["at"]
        actor.perform(actor.take(step))
        peers = actor.replica.status(actor.now)["peers"]
        assert isinstance(peers, list)
        states += [peer["state"] for peer in peers if peer["state"] not in states[-1:]]
    assert states == ["PROBE", "SNAPSHOT", "REPLICATE"]
    assert actor.replica.complete


# --- level 2 ----------------------------------------------------------------------------------


def test_the_recording_of_level_2_has_every_message_that_it_knows() -> None:
    later = {MessageType.HANDOVER, MessageType.OPINIONS}
    kinds = {MessageType(body(datagram)[0]) for datagram in GROUPED.datagrams}
    assert kinds == set(MessageType) - later - {MessageType.SEALED} - COUNTED


@pytest.mark.parametrize("number", numbers(GROUPED))
def test_what_level_2_said_is_understood(number: int) -> None:
    understood = meaning(decode(GROUPED.datagrams[number]))
    recorded = GROUPED.meanings[number]
    assert {name: understood[name] for name in recorded} == recorded


@pytest.mark.parametrize("number", numbers(GROUPED))
def test_what_level_2_said_is_still_said_so_with_what_was_added_at_the_end(number: int) -> None:
    recorded = GROUPED.datagrams[number]
    said = encode(decode(recorded))
    assert said[:4] == recorded[:4]
    assert body(said)[: len(body(recorded))] == body(recorded)


@pytest.mark.parametrize("number", numbers(GROUPED))
def test_level_2_with_elements_that_it_does_not_know_means_the_same(number: int) -> None:
    lengthened = bytes.fromhex(GROUPED.lines[number]["lengthened"])
    assert decode(lengthened) == decode(GROUPED.datagrams[number])


def test_what_level_2_sealed_is_opened_with_its_key() -> None:
    seal = Seal([bytes.fromhex(GROUPED.rest["key"])], 1)
    opened = [seal.open(bytes.fromhex(line["sealed"])) for line in GROUPED.lines]
    assert opened == GROUPED.datagrams


def test_level_2_is_sealed_as_it_was() -> None:
    seal = Seal([bytes.fromhex(GROUPED.rest["key"])], GROUPED.rest["session"])
    sealed = [seal.seal(datagram).hex() for datagram in GROUPED.datagrams]
    assert sealed == [line["sealed"] for line in GROUPED.lines]


def test_fields_of_a_later_version_are_in_the_recording() -> None:
    records = [r for m in GROUPED.meanings for r in m.get("records", []) if len(r) > 7]
    assert [77, b"later".hex()] in [field for r in records for field in r[7]["others"]]
