"""``python -m tests.interop.sync``: a real kernel's sync daemons, and lvsha's on the other side.

The guest of `tests.interop.kernel` has a third link, on which lvsha's own daemons speak with
real sockets. Each seed draws services and connections. In one half of it the kernel is the
master: the connections pass through it, and lvsha must come to know each that the kernel
tells of, with state, time-out and server, and then handle their next packets as the kernel
does. In the other half lvsha is the master.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import trio

from lvsha.interfaces import mtu
from lvsha.model import format_address
from lvsha.sync.ipvs.daemons import Daemons
from lvsha.sync.ipvs.roster import Roster
from lvsha.sync_daemons import SyncDaemons
from tests import packets
from tests.interop.compare import comparable
from tests.interop.confinement import enter_network_namespace
from tests.interop.kernel import GuestError, KernelSide, missing
from tests.interop.lvsha_side import server_lines
from tests.interop.wire import SyncTap
from tests.laboratory import Left
from tests.vectors.kernel_director import KernelDirector, mark_rule

VIPS: Final = {4: "192.0.2.61", 6: "2001:db8:ffff::61"}
MARKED: Final = {4: "192.0.2.62", 6: "2001:db8:ffff::62"}
GROUPS: Final = {4: "224.0.0.81", 6: "ff02::81"}
SERVERS: Final = {4: "10.1.0.{}", 6: "fd00:5::{:x}"}
BITS: Final = {4: 32, 6: 128}
MARK = 8
SYNC_ID = 21
HEARD_TIME = 6.0
"""Seconds until the other side must know everything: the flush after 2 s, looked at each
second, and a slow machine."""
TOLERANCE = 6
"""Seconds between two times left: a copy's begins when its record comes."""
UNTOLD_STATES: Final = frozenset({"SYN_RECV", "SYN_SENT", "NONE"})
RUNS_MAX = 3

Send = Callable[[str, bytes], list[Left]]
Ending = Literal["open", "half", "fin", "reset"]


class MissedError(Exception):
    """The two sides differ; the message says how."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed draws.

    Attributes:
        version: of the protocol.
        family: 4 or 6; of the group that the daemons speak on, too.
        options: of the service, and of its servers, in ipvsadm's words.
        port: of the servers.
        endings: one connection for each.
    """

    seed: int
    version: int
    family: int
    protocol: int
    method: str
    mark: bool
    persistence: int
    netmask: bool
    threshold: str
    endings: tuple[Ending, ...]

    @property
    def virtual(self) -> tuple[str, int]:
        """Where clients send to."""
        return (MARKED if self.mark else VIPS)[self.family], 80

    @property
    def server_port(self) -> int:
        """Where NAT servers listen."""
        return 8080 if self.method == "-m" and not self.mark else 80

    @property
    def is_told_whole(self) -> bool:
        """Whether no connection stays untold, because it is in its handshake."""
        return self.protocol == packets.UDP or "half" not in self.endings

    def configuration(self) -> list[str]:
        """The commands of ipvsadm that both sides are configured with."""
        virtual = VIPS[self.family] if self.family == 4 else f"[{VIPS[self.family]}]"
        letter = "-t" if self.protocol == packets.TCP else "-u"
        service = f"{letter} {virtual}:80"
        if self.mark:
            service = f"-f {MARK}" + (" -6" if self.family == 6 else "")
        options = f"-p {self.persistence}" if self.persistence else ""
        if self.netmask:
            options += " -M " + ("255.255.255.0" if self.family == 4 else "64")
        lines = [f"-A {service} -s rr {options}"]
        for last in (2, 3, 4):
            server = SERVERS[self.family].format(last)
            end = server if self.family == 4 else f"[{server}]"
            where = server if self.mark else f"{end}:{self.server_port}"
            lines.append(f"-a {service} -r {where} {self.method}")
        return lines

    def daemon(self, role: str, interface: str) -> str:
        """The command that starts a daemon."""
        return (
            f"--start-daemon {role} --mcast-interface {interface} --syncid {SYNC_ID} "
            f"--mcast-group {GROUPS[self.family]}"
        )

    def __str__(self) -> str:
        """For people."""
        name = {packets.TCP: "TCP", packets.UDP: "UDP"}[self.protocol]
        what = f"version {self.version}, IPv{self.family}, {name} {self.method}"
        what += ", firewall mark" if self.mark else ""
        what += f", persistent {self.persistence} s" if self.persistence else ""
        return f"{what}, threshold {self.threshold}, {len(self.endings)} connections"


def draw(seed: int) -> Plan:
    """The plan of a seed; neighbouring seeds differ in version, family, method and protocol."""
    dice = random.Random(seed)
    version = seed % 2
    family = 4 if version == 0 else (4, 6)[seed // 2 % 2]
    persistence = dice.choice((0, 0, 300, 60))
    # Version 0 has no place for a mark: a kernel would not find the service again.
    mark = version == 1 and bool(dice.randrange(3) == 0)
    endings: tuple[Ending, ...] = ("open", "open", "fin", "reset")
    if dice.random() < 0.5:
        endings = (*endings, "half")
    return Plan(
        seed=seed,
        version=version,
        family=family,
        protocol=(packets.TCP, packets.TCP, packets.UDP)[seed % 3],
        method=("-m", "-g", "-i")[dice.randrange(3)],
        mark=mark,
        persistence=persistence,
        netmask=bool(persistence) and dice.random() < 0.5,
        threshold=dice.choice(("3 50", "0 1", "1 4", "3 0")),
        endings=tuple(dice.choice(endings) for _ in range(dice.randint(3, 60))),
    )


class Conversation:
    """One connection of a plan, spoken through either side."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan = plan
        self._ending = plan.endings[number]
        host = number % 200 + 1
        self._client = f"198.51.100.{host}" if plan.family == 4 else f"2001:db8:1::{host:x}"
        self._port = 20_000 + number
        self._server = ""

    @property
    def goes_on(self) -> bool:
        """Whether more packets of it may come."""
        return self._ending == "open"

    def speak(self, send: Send) -> None:
        """All packets of it."""
        plan, say = self._plan, self._from_client
        if plan.protocol == packets.UDP:
            for _ in range(5):
                self._note(send("client", say(0)))
                self._answer(send, 0)
            return
        syn, ack, fin = packets.SYN, packets.ACK, packets.FIN
        self._note(send("client", say(syn)))
        if self._ending == "half":
            return
        self._answer(send, syn | ack)
        for _ in range(4):
            send("client", say(ack))
        if self._ending == "fin":
            send("client", say(fin | ack))
            self._answer(send, fin | ack)
            send("client", say(ack))
        elif self._ending == "reset":
            send("client", say(packets.RST))

    def next_packet(self) -> bytes:
        """A packet that shows where the connection goes."""
        return self._from_client(packets.ACK)

    def _from_client(self, flags: int) -> bytes:
        ends = (self._client, self._port, *self._plan.virtual)
        if self._plan.protocol == packets.UDP:
            return packets.udp(*ends, b"data")
        return packets.tcp(*ends, flags)

    def _answer(self, send: Send, flags: int) -> None:
        """The server's packet; only NAT lets the director see it."""
        if self._plan.method != "-m":
            return
        ends = (self._server, self._plan.server_port, self._client, self._port)
        if self._plan.protocol == packets.UDP:
            send("server", packets.udp(*ends, b"data"))
        else:
            send("server", packets.tcp(*ends, flags))

    def _note(self, left: Sequence[Left]) -> None:
        if not left:
            raise MissedError(f"{self._client}:{self._port} finds no server")
        if self._plan.method == "-m":
            packet = left[0].packet
            there = packet[16:20] if self._plan.family == 4 else packet[24:40]
            self._server = format_address(there)


class LvshaHalf(KernelDirector):
    """lvsha's director, with real daemons on the host's end of the sync link."""

    def __init__(self, plan: Plan) -> None:
        super().__init__({"vips": [VIPS[plan.family], MARKED[plan.family]], "config": []})
        self.real = Daemons(
            Roster(mtu), self, lambda: self.director.settings, self.states(), self._mark_of
        )
        self.daemons = SyncDaemons(self.real, self.director)
        self._began = time.monotonic()
        if plan.mark:
            self.director.marks.set([mark_rule(MARKED[plan.family], MARK)])
        self.do(*plan.configuration())

    def do(self, *commands: str) -> None:
        """Carry out commands of ipvsadm."""
        for command in commands:
            result = self.ipvsadm(command)
            if result.status:
                raise MissedError(f"lvsha's ipvsadm {command}: {result.err}")

    def send(self, side: str, packet: bytes, vnet: bytes = packets.NO_VNET) -> list[Left]:
        """Let a packet come in."""
        self.catch_up()
        return super().send(side, packet, vnet)

    def tell_daemons(self) -> None:
        """Tell the real daemons of changes."""
        for sync_id, changes in self.director.registry.take_changes().items():
            self.real.tell(sync_id, changes)

    def catch_up(self) -> None:
        """Let the director's clock show how much time has passed."""
        self.at(time.monotonic() - self._began)


Lines = dict[str, tuple[str, int]]


def parse_lines(lines: Sequence[str]) -> Lines:
    """State and seconds left of each connection of ``ipvsadm -Lnc``."""
    found: Lines = {}
    for line in lines:
        protocol, left, state, client, virtual, server, *_ = line.split()
        minutes, _, seconds = left.partition(":")
        found[f"{protocol} {client} {virtual} {server}"] = state, int(minutes) * 60 + int(seconds)
    return found


def differences(told: Lines, known: Lines, version: int = 1) -> Iterator[str]:
    """What the side that listens knows otherwise than the one that speaks.

    In version 0 a template is told only when one of its connections is, and without a time-out.
    """
    for name, (state, left) in told.items():
        is_template = name.split()[1].endswith(":0")
        if is_template and not version:
            continue
        if state in UNTOLD_STATES and not is_template:
            if name in known:
                yield f"{name} in state {state} should not be known"
            continue
        if name not in known:
            yield f"{name} ({state}, {left} s) is not known"
            continue
        other, other_left = known[name]
        if other != state:
            yield f"{name} is {state}, known as {other}"
        elif not left - TOLERANCE <= other_left <= left + TOLERANCE:
            yield f"{name} lasts {left} s, is known to last {other_left} s"
    yield from (f"{name} is known and does not exist" for name in known.keys() - told.keys())


class Trial:
    """One seed."""

    def __init__(self, plan: Plan, kernel: KernelSide) -> None:
        self.plan = plan
        self.kernel = kernel
        self.connections = 0

    async def run(self, *, kernel_speaks: bool) -> None:
        """One of its halves.

        Raises:
            MissedError: the two sides differ.
        """
        plan, kernel = self.plan, self.kernel
        kernel.reset(["rr"])
        if plan.mark:
            kernel.mark(f"{MARKED[plan.family]}/{BITS[plan.family]}", MARK)
        kernel.configure(plan.configuration())
        lvsha = LvshaHalf(plan)
        kernel.sysctl("sync_version", str(plan.version))
        kernel.sysctl("sync_threshold", plan.threshold)
        lvsha.set(sync_version=plan.version, sync_threshold=plan.threshold)
        async with trio.open_nursery() as nursery:
            await nursery.start(lvsha.real.run)
            roles = ("master", "backup") if kernel_speaks else ("backup", "master")
            kernel.configure([plan.daemon(roles[0], "vec2")])
            lvsha.do(plan.daemon(roles[1], SyncTap.name))
            await trio.sleep(0.1)
            conversations = [Conversation(plan, number) for number in range(len(plan.endings))]
            for conversation in conversations:
                conversation.speak(kernel.send if kernel_speaks else lvsha.send)
                await trio.lowlevel.checkpoint()
            await self._wait_until_known(lvsha, kernel_speaks=kernel_speaks)
            self._go_on(lvsha, conversations)
            nursery.cancel_scope.cancel()
        if kernel_speaks:
            kernel.configure(["--stop-daemon master"])
        else:
            kernel.configure(["--stop-daemon backup"])

    async def _wait_until_known(self, lvsha: LvshaHalf, *, kernel_speaks: bool) -> None:
        end = trio.current_time() + HEARD_TIME
        while True:
            await trio.sleep(0.3)
            lvsha.catch_up()
            of_kernel = parse_lines(self.kernel.do("ipvsadm -Lnc").splitlines()[2:])
            of_lvsha = parse_lines(lvsha.lines())
            sides = (of_kernel, of_lvsha) if kernel_speaks else (of_lvsha, of_kernel)
            found = list(differences(*sides, self.plan.version))
            if not found and self.plan.is_told_whole:
                found = self._counted_otherwise(lvsha)
            if not found:
                self.connections += len(sides[1])
                return
            if trio.current_time() > end:
                raise MissedError("\n    ".join(found[:8]))

    def _counted_otherwise(self, lvsha: LvshaHalf) -> list[str]:
        """Servers whose counts differ: whether a connection counts as active was told, too."""
        of_kernel, of_lvsha = self.kernel.counts(), server_lines(lvsha.ipvsadm("-Ln").out)
        return [
            f"the kernel counts {kernel}, lvsha {ours}"
            for kernel, ours in zip(of_kernel, of_lvsha, strict=True)
            if kernel != ours
        ]

    def _go_on(self, lvsha: LvshaHalf, conversations: Sequence[Conversation]) -> None:
        """The next packet of each connection must leave both in the same way."""
        for conversation in conversations:
            if not conversation.goes_on:
                continue
            packet = conversation.next_packet()
            of_kernel = list(map(comparable, self.kernel.send("client", packet)))
            of_lvsha = list(map(comparable, lvsha.send("client", packet)))
            if not of_kernel or of_kernel != of_lvsha:
                raise MissedError(
                    f"the packet {packet.hex()} leaves the kernel as {of_kernel} and lvsha as "
                    f"{of_lvsha}"
                )


def run_seed(seed: int, kernel: KernelSide) -> Trial:
    """Both halves of a seed; a difference must show again, and a guest may fail.

    Raises:
        MissedError: the two sides differ.
    """
    error: MissedError | None = None
    for _ in range(RUNS_MAX):
        trial = Trial(draw(seed), kernel)
        try:
            for kernel_speaks in (True, False):
                who = "the kernel" if kernel_speaks else "lvsha"
                try:
                    trio.run(run_half, trial, kernel_speaks)
                except* MissedError as group:
                    first = group.exceptions[0]
                    raise MissedError(f"{who} speaks: {first}") from None
        except GuestError:
            kernel.reboot()
        except MissedError as found:
            if error is not None:
                raise
            error = found
        else:
            return trial
    raise error or MissedError("the guest does not last")


async def run_half(trial: Trial, kernel_speaks: bool) -> None:
    """For `trio.run`."""
    await trial.run(kernel_speaks=kernel_speaks)


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.sync", description=__doc__)
    parser.add_argument("--seeds", type=int, default=24, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run the seeds; returns the exit status."""
    arguments = parse_arguments(words)
    reason = missing()
    if reason is not None:
        print(f"interop of sync skipped: {reason}")
        return 0
    enter_network_namespace()
    failed, connections = [], 0
    started = time.monotonic()
    vips = [f"{group[family]}/{bits}" for group in (VIPS, MARKED) for family, bits in BITS.items()]
    with KernelSide(vips, synced=True) as kernel:
        print(f"sync between Linux {kernel.release} and lvsha, {arguments.seeds} seeds")
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            try:
                connections += run_seed(seed, kernel).connections
            except MissedError as error:
                failed.append(seed)
                print(f"seed {seed}, {draw(seed)}:\n    {error}")
    took = time.monotonic() - started
    good = arguments.seeds - len(failed)
    print(f"{good} of {arguments.seeds} seeds agree, {connections} connections, in {took:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
