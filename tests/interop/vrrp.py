"""``python -m tests.interop.vrrp``: lvsha and keepalived share a virtual router.

For every combination of version, family, multicast or unicast, and checksum, and for several
virtual routers on one interface, the real programs go through the same scenes: each is backup
and master, each preempts the other and is kept from it, stops in order and is killed, and the
interval changes. After each scene exactly one of the two must hold the addresses, within the
time of the RFC, and go on doing so for longer than a backup would wait. The times in the table
are measured by the kernel's own notifications, from what began the scene.

It needs root, and the programs that ``tools/prepare.sh interop`` installs.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.interop.vrrp_lab import Case, Lab, Side, VrrpError, router, until

LOW, MIDDLE, HIGH = 100, 150, 200
INTERVALS: Final = {2: 1, 3: 0.5}
"""The interval of each version; it is changed to the double."""
SLACK: Final = 0.5
"""What a machine that runs several of these at once may add to a time of the RFC."""
RELEASE_TIME: Final = 0.5
"""What lvsha may take to put its connections in order before it resigns."""
LIFETIME_MAX: Final = 6.0
"""After which the kernel has taken the addresses of a killed lvsha away."""


def knows_rfc_checksum() -> bool:
    """Whether this machine's keepalived can leave the pseudo-header out; 2.2.7 cannot."""
    keepalived = Path(shutil.which("keepalived") or "/missing").read_bytes()
    return b"v3_checksum_as_v2" in keepalived


def cases() -> list[Case]:
    """Every combination that this machine's keepalived can speak."""
    conventions = ["auto", "keepalived"]
    if knows_rfc_checksum():
        conventions.append("rfc9568")
    routers = [router(2, 4, unicast=unicast) for unicast in (False, True)]
    for unicast in (False, True):
        routers += [router(3, 4, unicast=unicast, checksum=word) for word in conventions]
        routers.append(router(3, 6, unicast=unicast))
    # keepalived without one: it could not make a macvlan on every machine.
    routers += [router(3, family, unicast=False, virtual_mac=True) for family in (4, 6)]
    several = (
        router(3, 4, unicast=False),
        router(3, 6, unicast=False),
        router(3, 4, unicast=True, vrid=52),
    )
    return [*(Case((one,)) for one in routers), Case(several)]


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of the RFC for one version and interval."""

    version: int
    interval: float

    def skew(self, priority: int) -> float:
        return (256 - priority) / 256 * (1.0 if self.version == 2 else self.interval)

    def down(self, priority: int) -> float:
        return 3 * self.interval + self.skew(priority)


@dataclass(frozen=True, slots=True)
class Settled:
    """How long a scene took, and how long it might have."""

    scene: str
    took: float
    limit: float


class Play:
    """The scenes of one case, in order; each begins where the one before has ended."""

    def __init__(self, lab: Lab, interval: float) -> None:
        self.lab = lab
        self.lvsha, self.keepalived = lab.lvsha, lab.keepalived
        self.timing = Timing(lab.case.version, interval)
        self.slower = Timing(lab.case.version, 2 * interval)
        self.settled: list[Settled] = []

    def run(self) -> list[Settled]:
        self.keepalived_is_master()
        self.lvsha_is_master()
        return self.settled

    def keepalived_is_master(self) -> None:
        lab, timing, slower = self.lab, self.timing, self.slower
        began = lab.start_keepalived(MIDDLE, timing.interval)
        self.settle("K alone", self.keepalived, began, timing.down(MIDDLE))
        began = lab.start_lvsha(LOW, timing.interval)
        self.stay("L joins", self.keepalived, began, timing.down(LOW))
        self.check_peer(timing.interval, MIDDLE)
        began = lab.stop(self.keepalived)
        self.settle("K resigns", self.lvsha, began, timing.skew(LOW))
        lab.wait_end(self.keepalived)
        began = lab.start_keepalived(MIDDLE, timing.interval)
        self.settle("K preempts", self.keepalived, began, timing.down(MIDDLE))
        if self.lab.case.version == 2:
            # Nobody learns it, so it has to change on both sides.
            lab.stop(self.lvsha)
            lab.wait_end(self.lvsha)
            lab.reload_keepalived(MIDDLE, slower.interval)
            began = lab.start_lvsha(LOW, slower.interval)
        else:
            began = lab.reload_keepalived(MIDDLE, slower.interval)
        self.stay("K's interval", self.keepalived, began, slower.down(LOW))
        self.check_peer(slower.interval, MIDDLE)
        began = lab.kill(self.keepalived)
        self.keepalived.wipe()
        self.settle("K killed", self.lvsha, began, slower.down(LOW))
        began = lab.start_keepalived(MIDDLE, slower.interval, preempt=False)
        self.stay("K nopreempt", self.lvsha, began, slower.down(MIDDLE))
        for side in (self.keepalived, self.lvsha):
            lab.stop(side)
            lab.wait_end(side)
        until("nobody holds the addresses", lambda: self.lvsha.is_empty)

    def lvsha_is_master(self) -> None:
        lab, timing, slower = self.lab, self.timing, self.slower
        began = lab.start_lvsha(HIGH, timing.interval)
        self.settle("L alone", self.lvsha, began, timing.down(HIGH))
        began = lab.start_keepalived(MIDDLE, timing.interval)
        # Until it has heard a peer, it may have a checksum that this one does not know.
        deaf = timing.down(MIDDLE) if self.may_be_deaf else 0.0
        self.stay("K joins", self.lvsha, began, timing.down(MIDDLE), deaf=deaf)
        began = lab.stop(self.lvsha)
        limit = timing.skew(MIDDLE) + RELEASE_TIME
        self.settle("L resigns", self.keepalived, began, limit)
        lab.wait_end(self.lvsha)
        began = lab.start_lvsha(HIGH, timing.interval, preempt=False)
        self.stay("L nopreempt", self.keepalived, began, timing.down(HIGH))
        lab.stop(self.lvsha)
        lab.wait_end(self.lvsha)
        began = lab.start_lvsha(HIGH, timing.interval)
        self.settle("L preempts", self.lvsha, began, timing.down(HIGH))
        lab.stop(self.lvsha)
        lab.wait_end(self.lvsha)
        if lab.case.version == 2:
            lab.stop(self.keepalived)
            lab.wait_end(self.keepalived)
            lab.start_keepalived(MIDDLE, slower.interval)
        began = lab.start_lvsha(HIGH, slower.interval)
        limit = max(timing.down(HIGH), slower.down(HIGH))
        self.settle("L's interval", self.lvsha, began, limit)
        began = lab.kill(self.lvsha)
        limit = slower.down(MIDDLE)
        self.settle("L killed", self.keepalived, began, limit, leaves_late=LIFETIME_MAX)

    # What must come true

    def other(self, side: Side) -> Side:
        return self.keepalived if side is self.lvsha else self.lvsha

    @property
    def may_be_deaf(self) -> bool:
        return any((one.version, one.checksum) == (3, "auto") for one in self.lab.case.routers)

    def holds_alone(self, side: Side) -> bool:
        return side.is_full and self.other(side).is_empty

    def settle(
        self, scene: str, holder: Side, began: float, limit: float, leaves_late: float = 0.0
    ) -> None:
        """The addresses come to a side in time, leave the other, and stay there.

        Args:
            scene: its name.
            holder: who shall have them.
            began: when what moves them happened.
            limit: what the RFC allows.
            leaves_late: for how long they may remain where a program was killed.
        """
        patience = limit + SLACK
        end = began + patience
        name = f"{scene}: {holder.name} holds the addresses"
        until(name, lambda: holder.is_full, max(0.0, end - time.monotonic()) + SLACK)
        took = holder.changed_at - began
        name += " alone"
        until(name, lambda: self.holds_alone(holder), leaves_late + SLACK)
        if not leaves_late:
            took = max(took, self.other(holder).changed_at - began)
        if took > patience:
            raise VrrpError(f"{name} after {took:.3f} s instead of {limit:.3f} s")
        self.settled.append(Settled(scene, took, limit))
        self.watch(scene, holder, time.monotonic())

    def stay(self, scene: str, holder: Side, began: float, down: float, deaf: float = 0.0) -> None:
        """The addresses stay where they are, for longer than the other one waits.

        Args:
            scene: its name.
            holder: who has them.
            began: when something happened that must not move them.
            down: for how long the other one would wait.
            deaf: within this time the other one may take them, too, for a moment.
        """
        if deaf:
            time.sleep(deaf + SLACK)
            until(f"{scene}: {holder.name} holds on", lambda: self.holds_alone(holder), SLACK)
            self.watch(scene, holder, time.monotonic(), down)
        else:
            self.watch(scene, holder, began, down)
        self.settled.append(Settled(scene, 0.0, 0.0))

    def watch(self, scene: str, holder: Side, since: float, down: float | None = None) -> None:
        """Nothing moves for longer than a backup would wait."""
        if down is None:
            down = self.slower.down(LOW) if self.timing.version == 3 else self.slower.skew(LOW)
        time.sleep(max(0.0, since + down + SLACK / 2 - time.monotonic()))
        if not self.holds_alone(holder):
            raise VrrpError(f"{scene}: {holder.name} does not hold the addresses alone")
        for side in (self.lvsha, self.keepalived):
            if side.changed_at > since:
                raise VrrpError(f"{scene}: the addresses moved at {side.name}")

    def check_peer(self, interval: float, priority: int) -> None:
        """The backup knows the master's rate, whatever its own is."""

        def is_known() -> bool:
            peers = [router["peer"] for router in self.lab.lvsha_routers()]
            return all(
                isinstance(peer, dict)
                and (peer["interval_seconds"], peer["priority"]) == (interval, priority)
                for peer in peers
            )

        until(f"lvsha knows priority {priority} and interval {interval}", is_known, 3 * interval)


def play(case: Case, interval: float, number: int) -> list[Settled] | str:
    """The times of a case, or what went wrong."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lvsha-vrrp-")))
        lab = Lab(stack, case, folder, number)
        try:
            return Play(lab, interval).run()
        except VrrpError as error:
            return f"{case}: {error}\n{lab.tails()}"


def show(results: Sequence[tuple[Case, list[Settled] | str]], say: Callable[[str], None]) -> None:
    """Print a table: a row for each scene, a column for each case."""
    played = [(case, settled) for case, settled in results if not isinstance(settled, str)]
    for number, (case, _) in enumerate(played, 1):
        say(f"({number}) {case}")
    if not played:
        return
    say("seconds until one holds the addresses alone / what the RFC allows; - : nothing moved")
    say("(a killed lvsha's kernel keeps them for some seconds; the time is the other one's)")
    say(f"{'':14}" + "".join(f"{f'({number})':>14}" for number in range(1, len(played) + 1)))
    for row in zip(*(settled for _, settled in played), strict=True):
        cells = [f"{one.took:.2f} / {one.limit:.2f}" if one.limit else "-" for one in row]
        say(f"{row[0].scene:14}" + "".join(f"{cell:>14}" for cell in cells))


def main(words: Sequence[str]) -> int:
    """Run the cases; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop.vrrp")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--jobs", type=int, default=4, help="cases at the same time")
    parser.add_argument("--interval", type=float, help="that of version 3, from 0.01 s")
    arguments = parser.parse_args(words)
    by_version = INTERVALS | ({3: arguments.interval} if arguments.interval else {})
    chosen = [case for case in cases() if arguments.only in str(case)]
    began = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        intervals = [by_version[case.version] for case in chosen]
        played = pool.map(play, chosen, intervals, range(len(chosen)))
        results = list(zip(chosen, played, strict=True))
    show(results, print)
    if not knows_rfc_checksum():
        print("this keepalived knows one checksum of version 3 over IPv4: the RFC's was not played")
    failures = [settled for _, settled in results if isinstance(settled, str)]
    for failure in failures:
        print(failure)
    good = len(chosen) - len(failures)
    took = time.monotonic() - began
    print(f"vrrp: {good} of {len(chosen)} cases settle with keepalived, in {took:.0f} s")
    return 1 if failures or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
