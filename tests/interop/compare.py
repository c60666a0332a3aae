"""Run a scenario on both directors and tell the first difference in words.

After every packet, what left is compared: side, link-layer destination and all bytes but
those that differ between two runs of the same kernel (`comparable`). Every few steps, and at
the end, the connections and the servers' counts are compared; a second run looks after each
step, so that a difference is told at the step that made it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests import packets
from tests.interop.differences import HOST_ANSWERS, Incoming, named
from tests.interop.draw import VIPS, Capabilities, draw_scenario
from tests.interop.kernel import CommandResult, GuestError, KernelSide
from tests.interop.lvsha_side import LvshaSide, Side
from tests.interop.steps import Command, Complain, Say, Scenario, Setting, Step, Stray
from tests.interop.traffic import FRAGMENT_HEADER, SCTP, Traffic
from tests.laboratory import Left

RUN_TIME_MAX = 9.0
"""Seconds after which the kernel could have forgotten something: TCP's CLOSE lasts 10."""
RUN_TIME_SCTP_MAX = 3.5
"""The same where SCTP is spoken: its INIT1 lasts 4."""
LOOK_EVERY = 30
RUNS_MAX = 4
LOOKS_MAX = 5
"""The kernel lets a connection go by a timer of its own, some milliseconds late."""
_OWN = frozenset(map(packets.address, ("10.0.0.1", "10.1.0.1", "fd00:c::1", "fd00:5::1")))


class DisagreementError(Exception):
    """The two directors differ; the message says how, ``step`` where."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class RevivedError(Exception):
    """The host's reset has revived a connection in the kernel, which has no host of its own here.

    With ``expire_nodest_conn`` a packet of a removed server's connection ends that, and then
    the kernel's host answers the packet with a reset. Where replies do not pass through
    translation the reset is taken for the connection's own, and the connection lives on,
    closed. From here on the two directors cannot be compared.
    """


class TooSlowError(Exception):
    """The run took so long that the kernel may have forgotten connections."""


@dataclass(slots=True)
class Tally:
    """What the runs so far consisted of."""

    counts: Counter[str] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)


class Comparison:
    """One run of one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        kernel: KernelSide,
        lvsha: Side | None,
        *,
        closely_from: int | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.tally = Tally()
        self._scenario = scenario
        self._kernel = kernel
        self._lvsha = lvsha
        self._closely_from = closely_from
        self._report = report
        self._traffic = Traffic()

    def run(self, clock: Callable[[], float]) -> None:
        """Run from the configuration to the end.

        Raises:
            DisagreementError: The directors differ.
            TooSlowError: The run took too long to mean anything.
        """
        self._kernel.reset(self._scenario.schedulers)
        started = clock()
        for prefix, mark in self._scenario.marks:
            for side in self._sides():
                side.mark(prefix, mark)
        try:
            self._configure()
            for number, step in enumerate(self._scenario.steps):
                self._carry_out(number, step)
                if number % LOOK_EVERY == LOOK_EVERY - 1 or self._is_close(number):
                    self._look(number, step)
            self._look(len(self._scenario.steps), None)
        finally:
            if clock() - started > self._time_max():
                raise TooSlowError

    def _is_close(self, number: int) -> bool:
        return self._closely_from is not None and number >= self._closely_from

    def _time_max(self) -> float:
        speaks_sctp = any(
            isinstance(step, Say) and step.flow.protocol == SCTP for step in self._scenario.steps
        )
        return RUN_TIME_SCTP_MAX if speaks_sctp else RUN_TIME_MAX

    def _configure(self) -> None:
        commands = []
        for change in self._scenario.configuration:
            if isinstance(change, Setting):
                self._carry_out(-1, change)
                continue
            commands.append(change.text)
            self._say(-1, told(change))
            if self._lvsha is not None:
                result = self._lvsha.ipvsadm(change.text)
                if result[0]:
                    raise self._disagreement(
                        -1, told(change), f"lvsha's ipvsadm answers {_result(result)}"
                    )
        self._kernel.configure(commands)
        self.tally.counts["commands"] += len(commands)

    def _sides(self) -> list[Side]:
        return [self._kernel] if self._lvsha is None else [self._kernel, self._lvsha]

    def _carry_out(self, number: int, step: Step) -> None:
        match step:
            case Setting(name, value):
                for side in self._sides():
                    side.sysctl(name, value)
                self._say(number, f"{name} = {value}")
            case Command():
                self._command(number, step)
            case _:
                self._exchange(number, step)

    def _command(self, number: int, command: Command) -> None:
        result = self._kernel.ipvsadm(command.text)
        self.tally.counts["commands"] += 1
        self._say(number, f"ipvsadm {command.text}: {_result(result)}")
        if (result[0] == 0) != command.accepted:
            meant = "accepted" if command.accepted else "refused"
            raise self._disagreement(
                number,
                told(command),
                f"the kernel's ipvsadm answers {_result(result)}, meant to be {meant}",
            )
        if self._lvsha is None:
            return
        found = self._lvsha.ipvsadm(command.text)
        if self._ends_orphans() and command.text.lower().startswith("-d"):
            self._wait_for_sweep()
        if found != result:
            raise self._disagreement(
                number,
                told(command),
                f"the kernel's ipvsadm answers {_result(result)}, lvsha's {_result(found)}",
            )

    def _exchange(self, number: int, step: Say | Complain | Stray) -> None:
        batch = self._traffic.packets(step)
        for packet in batch:
            kernel = self._kernel.send(step.side, packet)
            self.tally.counts["packets"] += 1
            self.tally.counts["packets out"] += len(kernel)
            self._say(number, f"{told(step)}: {words(kernel)}")
            if self._lvsha is not None:
                self._compare(number, step, packet, kernel, self._lvsha.send(step.side, packet))
            self._traffic.observe(step, kernel)

    def _compare(
        self,
        number: int,
        step: Say | Complain | Stray,
        packet: bytes,
        kernel: Sequence[Left],
        lvsha: Sequence[Left],
    ) -> None:
        if list(map(comparable, kernel)) == list(map(comparable, lvsha)):
            return
        assert self._lvsha is not None
        difference = named(Incoming(step.side, packet, kernel, lvsha, self._lvsha.tunnels))
        if difference is not None:
            self.tally.differences[difference.name] += 1
            if difference.name == HOST_ANSWERS and self._ends_orphans():
                self._look_for_the_revived()
            return
        raise self._disagreement(
            number,
            told(step),
            f"the packet from the {step.side} side\n    {packet.hex()}\n"
            f"  of the kernel left: {words(kernel)}\n  of lvsha left:      {words(lvsha)}",
        )

    def _ends_orphans(self) -> bool:
        """Whether connections of removed servers are ended in this scenario."""
        changes = (*self._scenario.configuration, *self._scenario.steps)
        return Setting("expire_nodest_conn", "1") in changes

    def _wait_for_sweep(self) -> None:
        """The kernel ends the connections of a removed server a moment later."""
        assert self._lvsha is not None
        for _ in range(LOOKS_MAX):
            if self._kernel.connections() == self._lvsha.connections():
                return

    def _look_for_the_revived(self) -> None:
        assert self._lvsha is not None
        revived = set(self._kernel.connections()) - set(self._lvsha.connections())
        if revived and all(line.split()[1] == "CLOSE" for line in revived):
            raise RevivedError

    def _look(self, number: int, step: Step | None) -> None:
        """Compare the connections and the counts."""
        where = "at the end" if step is None else f"after {told(step)}"
        lvsha = self._lvsha or self._kernel
        for name, of_kernel, of_lvsha in (
            ("connections", self._kernel.connections, lvsha.connections),
            ("counts", self._kernel.counts, lvsha.counts),
        ):
            kernel_lines: list[str] = []
            lvsha_lines: list[str] = []
            for _ in range(LOOKS_MAX):
                kernel_lines, lvsha_lines = of_kernel(), of_lvsha()
                if kernel_lines == lvsha_lines:
                    break
            else:
                raise self._disagreement(
                    number,
                    where,
                    f"the {name} differ\n"
                    f"  only in the kernel: {_only(kernel_lines, lvsha_lines)}\n"
                    f"  only in lvsha:      {_only(lvsha_lines, kernel_lines)}",
                )
            self.tally.counts[f"{name} looked at"] += len(kernel_lines)
            self._say(number, f"{name}: {'; '.join(kernel_lines)}")

    def _disagreement(self, number: int, what: str, how: str) -> DisagreementError:
        configuration = "".join(f"\n    {told(change)}" for change in self._scenario.configuration)
        commands = "".join(
            f"\n    step {at}: {told(step)}"
            for at, step in enumerate(self._scenario.steps[: max(number, 0)])
            if isinstance(step, Command | Setting)
        )
        place = "configuration" if number < 0 else f"step {number}"
        changed = f"\n  changed:{commands}" if commands else ""
        return DisagreementError(
            number,
            f"seed {self._scenario.seed}, {place}, {what}\n"
            f"  configured:{configuration}{changed}\n  {how}",
        )

    def _say(self, number: int, text: str) -> None:
        if self._report is not None:
            self._report(f"{number:4} {text}")


def compare_seed(
    seed: int,
    capabilities: Capabilities,
    kernel: KernelSide,
    make_lvsha: Callable[[], Side] | None,
    clock: Callable[[], float],
    report: Callable[[str], None] | None = None,
) -> Tally:
    """Compare the two directors in a seed's scenario.

    A difference counts only if it is there again in a second run: frames between the guest
    and this process can be lost. A run that was too slow is run again, and one
    whose guest failed on another guest.

    Raises:
        DisagreementError: The directors differ.
        TooSlowError: Every run was too slow.
    """
    scenario = draw_scenario(seed, capabilities)
    disagreement: DisagreementError | None = None
    closely_from = None
    for _ in range(RUNS_MAX):
        lvsha = None if make_lvsha is None else make_lvsha()
        comparison = Comparison(scenario, kernel, lvsha, closely_from=closely_from, report=report)
        try:
            comparison.run(clock)
        except RevivedError:
            comparison.tally.counts["seeds cut short by a reset of the host"] += 1
            return comparison.tally
        except TooSlowError:
            closely_from = None
        except GuestError:
            kernel.reboot()
        except DisagreementError as error:
            if disagreement is not None:
                raise
            disagreement = error
            closely_from = error.step - LOOK_EVERY
        else:
            return comparison.tally
    raise disagreement or TooSlowError(f"seed {seed}: this machine is too slow")


def new_lvsha() -> Side:
    """lvsha's director with all virtual addresses."""
    return LvshaSide((*VIPS[4], *VIPS[6]))


def comparable(left: Left) -> Left:
    """What left, without what differs between two runs of the same kernel.

    That is, of packets that the director makes itself, the identification, the flow label and
    the header checksum, and the source port and checksum of a GUE tunnel's UDP header; the
    flow label of a reset; and the identification of IPv6 fragments, which it always makes.
    """
    packet = bytearray(left.packet)
    if packet[0] >> 4 == 6:
        header_bytes, protocol, own = 40, packet[6], bytes(packet[8:24]) in _OWN
        first = True
        if protocol == FRAGMENT_HEADER:
            protocol, first = packet[40], not int.from_bytes(packet[42:44]) >> 3
            packet[44:48] = bytes(4)
            header_bytes = 48
        if own or protocol == packets.ICMPV6:
            packet[1:4] = bytes(3)
        elif packets.is_bare_reset(left.packet):
            packet[1:4] = bytes((packet[1] & 0xF0, 0, 0))
    else:
        header_bytes, protocol = (packet[0] & 0xF) * 4, packet[9]
        first = not int.from_bytes(packet[6:8]) & 0x1FFF
        own = bytes(packet[12:16]) in _OWN
        if own or protocol == packets.ICMP:
            packet[4:6] = packet[10:12] = bytes(2)
    if own and first and protocol == packets.UDP:
        packet[header_bytes : header_bytes + 2] = bytes(2)
        packet[header_bytes + 6 : header_bytes + 8] = bytes(2)
    return Left(left.side, left.dmac, bytes(packet))


def words(left: Sequence[Left]) -> str:
    """What left, for a reader."""
    if not left:
        return "nothing"
    return "; ".join(f"to {each.dmac} on the {each.side} side {each.packet.hex()}" for each in left)


def told(step: Step) -> str:
    """A step, for a reader."""
    match step:
        case Command(text=text):
            return f"ipvsadm {text}"
        case Setting(name, value):
            return f"{name} = {value}"
        case Stray(note=note):
            return note
        case Complain(flow=flow):
            return (
                f"ICMP error {step.kind}/{step.code} from the {step.side} side about "
                f"{flow.client} {flow.client_port} -> {flow.virtual} {flow.virtual_port}"
            )
        case Say(flow=flow):
            about = {packets.TCP: f"TCP flags {step.flags:#04x}", packets.UDP: "UDP"}.get(
                flow.protocol, f"SCTP chunks {step.chunks}"
            )
            pieces = f" in {step.fragments} fragments" if step.fragments > 1 else ""
            return (
                f"{about}, {step.payload_bytes} bytes{pieces}, said by the {step.side} of "
                f"{flow.client} {flow.client_port} -> {flow.virtual} {flow.virtual_port}"
            )


def _result(result: CommandResult) -> str:
    status, output, errors = result
    return f"{status} {(output + errors).strip()!r}"


def _only(here: Sequence[str], there: Sequence[str]) -> str:
    missing = Counter(here) - Counter(there)
    return "; ".join(missing.elements()) or "nothing"
