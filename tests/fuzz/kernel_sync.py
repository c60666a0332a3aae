"""``python -m tests.fuzz.kernel_sync``: hostile datagrams of the kernel's sync protocol.

A backup with a real director's table behind it hears what a master might say of the world in
which the frames of `tests.fuzz` pass, and what nobody should: datagrams with records that
cannot be, broken in all ways, or noise. Frames pass, services change and master daemons start
and stop in between. These rules hold:

* `parse` gives a value or raises `SyncError`; what it gives is emitted and parsed again as it
  was, where that version has a place for it.
* The backup raises nothing, and refuses by no other kinds than those that are known.
* Each record that it lets through is carried out or refused by the table, but not both.
* The table and the stand-ins keep their limits; tallies and all else in `checks` are right.

A seed gives the same run again.
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Final
from unittest import mock

from lvsha.connection_store import ConnectionStore
from lvsha.datapath import stand_ins
from lvsha.errors import SyncError
from lvsha.model import ConnectionRecord
from lvsha.sync.ipvs.actions import Apply, Refused
from lvsha.sync.ipvs.backup import Backup
from lvsha.sync.ipvs.messages import (
    FAULTS,
    RECORDS_MAX,
    ByteOrder,
    Message,
    can_carry,
    emit,
    emit_message,
    emit_record,
    parse,
)
from tests.fuzz import checks, landscape
from tests.fuzz.checks import demand
from tests.fuzz.draw import Corpus, Drawer
from tests.fuzz.run import CHECK_EVERY
from tests.fuzz.world import World

STEPS = 1500
FRAMES: Final = 0.4
"""The share of steps that are not a datagram."""
DAEMONS: Final = 0.02
"""Of these, the share in which a master daemon starts or stops."""
SYNC_ID = 5
STAND_INS_MAX = 12
"""In place of as many as there may be, so that runs come to the limit."""
KINDS = FAULTS | {
    "malformed",
    "sync_id",
    "flags_impossible",
    "protocol_unknown",
    "state_unknown",
    "engine_unknown",
}
RECENT = 64


class Listener:
    """A world that hears datagrams.

    Attributes:
        outcomes: what became of datagrams and records, by kind.
    """

    def __init__(self, world: World, byte_order: ByteOrder) -> None:
        director = world.director
        self.world = world
        self.outcomes: Counter[str] = Counter()
        self._byte_order: ByteOrder = byte_order
        states = {n: len(machine.timeouts) for n, machine in director.registry.machines.items()}
        self._backup = Backup([SYNC_ID], states, byte_order=byte_order)
        self._store = ConnectionStore(director, {}, lambda: world.now)

    def hear(self, datagram: bytes) -> None:
        """A datagram has come.

        Raises:
            BrokenRuleError: something that must hold does not.
        """
        self._check_parse(datagram)
        for action in self._backup.receive(datagram, self.world.now):
            match action:
                case Refused(kind):
                    demand(kind in KINDS, f"refused as {kind}")
                    self.outcomes[kind] += 1
                case Apply(records):
                    self._apply(records)
        self.world.director.registry.take_changes()

    def check_sizes(self) -> None:
        """Demand that nothing is above its limit."""
        director, plan = self.world.director, self.world.plan
        checks.sizes(director, plan.connections_max, plan.fragment_bytes)
        number = len(director.replication._stand_ins._servers)
        demand(number <= STAND_INS_MAX, f"{number} stand-ins")

    def _apply(self, records: tuple[ConnectionRecord, ...]) -> None:
        before = Counter(self._store.counters.snapshot())
        self._store.apply(records)
        refused = Counter(self._store.counters.snapshot()) - before
        demand(sum(refused.values()) <= len(records), f"{refused} of {len(records)} records")
        self.outcomes += refused
        self.outcomes["records"] += len(records)
        if not refused:
            known = {record.key for record in self._store.lookup([r.key for r in records])}
            missing = [record for record in records if record.key not in known]
            demand(not missing, f"taken over and not there: {missing}")

    def _check_parse(self, datagram: bytes) -> None:
        try:
            message = parse(datagram, self._byte_order)
        except SyncError:
            return
        demand(set(message.faults) <= FAULTS, f"faults {message.faults}")
        version = message.version
        records = tuple(record for record in message.records if can_carry(version, record))
        demand(bool(version) or records == message.records, "read from where there is no place")
        # What an engine found of a connection, not a template, is read only to be refused.
        sound = Message(
            version,
            message.sync_id,
            tuple(
                record
                for record in records
                if record.is_template or record.details is None or not record.details.engine
            ),
        )
        with suppress(SyncError):  # without its padding a record may be longer than it came
            again = parse(emit(sound, self._byte_order), self._byte_order)
            demand(again == sound, f"{sound} comes back as {again}")


class Talker:
    """Draws datagrams."""

    def __init__(self, dice: Random, drawer: Drawer, byte_order: ByteOrder) -> None:
        self._dice = dice
        self._drawer = drawer
        self._byte_order: ByteOrder = byte_order
        self._recent: list[bytes] = [b""]

    def datagram(self, world: World) -> bytes:
        """Something to hear."""
        dice = self._dice
        drawn = dice.random()
        if drawn < 0.02:
            return dice.randbytes(dice.choice((0, 1, 4, 8, 44, 1500)))
        datagram = self._message(world) if drawn < 0.7 else dice.choice(self._recent)
        if drawn > 0.4:
            for _ in range(dice.choice((1, 1, 2, 5))):
                datagram = self._broken(datagram)
        else:
            self._recent = [*self._recent[-RECENT:], datagram]
        return datagram

    def _message(self, world: World) -> bytes:
        dice = self._dice
        version = dice.choice((0, 1, 1))
        number = dice.choice((0, 1, 2, 10, 30, RECORDS_MAX))
        records = [self._drawer.record(world) for _ in range(min(number, 30))]
        # A kernel tells many that differ in little.
        records += [dice.choice(records)] * (number - len(records)) if records else []
        parts = [
            emit_record(version, record, self._byte_order)
            for record in map(self._possible if dice.random() < 0.6 else _same, records)
            if can_carry(version, record)
        ]
        sync_id = SYNC_ID if dice.random() < 0.97 else 6
        return emit_message(version, sync_id, parts)

    def _possible(self, record: ConnectionRecord) -> ConnectionRecord:
        """A record as a master might tell it."""
        flags = record.flags & 0x0120 | (0x1000 if record.is_template else 0)
        state = self._dice.choice((0, 0, 1)) if record.is_template else record.state
        return record._replace(flags=flags, state=state)

    def _broken(self, datagram: bytes) -> bytes:
        dice, data = self._dice, bytearray(datagram)
        at = dice.randrange(len(data) + 1)
        match dice.randrange(6):
            case 0 if data:
                data[at - 1] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at - 1] = dice.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at:]
            case 3:
                data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 24)))
            case 4:
                del data[at : at + dice.choice((1, 2, 4, 24))]
            case _:
                other = dice.choice(self._recent)
                data[at:] = other[dice.randrange(len(other) + 1) :]
        if dice.random() < 0.8 and len(data) >= 8:
            # The length is looked at first, and mends what comes behind.
            data[2:4] = (len(data) & 0xFFFF).to_bytes(2)
        return bytes(data)


def _same(record: ConnectionRecord) -> ConnectionRecord:
    return record


def run(seed: str, steps: int = STEPS) -> Counter[str]:
    """One director from its making to the end of its run.

    Returns:
        What became of what it heard.

    Raises:
        BrokenRuleError: something that must hold does not.
    """
    dice = Random(seed)
    byte_order: ByteOrder = "little" if dice.random() < 0.8 else "big"
    with mock.patch.object(stand_ins, "STAND_INS_MAX", STAND_INS_MAX):
        world, drawer = World(landscape.plan(dice)), Drawer(dice, Corpus())
        listener, talker = Listener(world, byte_order), Talker(dice, drawer, byte_order)
        for step in drawer.beginning():
            world.take(step)
        for number in range(1, steps + 1):
            if dice.random() > FRAMES:
                listener.hear(talker.datagram(world))
            elif dice.random() < DAEMONS:
                world.director.tell_others(told=dice.random() < 0.5)
                world._sleep(0.0)
            else:
                step = drawer.step(world)
                world.take(step)
                drawer.told(step, world, is_new=False)
            listener.check_sizes()
            if not number % CHECK_EVERY or number == steps:
                checks.everything(world, world.now)
    return listener.outcomes


def main(words: list[str]) -> int:
    """Fuzz for a while; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kernel_sync")
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="what all is drawn from")
    parser.add_argument("--run", type=int, default=0, help="the first run")
    arguments = parser.parse_args(words)
    outcomes: Counter[str] = Counter()
    number, end = arguments.run, time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        try:
            outcomes += run(f"{arguments.seed}/{number}")
        except Exception:
            print(f"seed {arguments.seed}, run {number} failed; --run {number} repeats it")
            raise
        number += 1
    print(", ".join(f"{kind} {times}" for kind, times in outcomes.most_common()))
    print(f"seed {arguments.seed}: {number - arguments.run} runs, no rule broken")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
