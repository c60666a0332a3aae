"""What carries the frames of a measurement: the director, the bare loop, or nothing.

Each is started anew for each turn, in the same namespace, and finds and leaves it alike:
the same nftables rules keep the frames from the host's stack while either runs. The director
is the real program with a pair file; the bare loop is `bench.yardstick`.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import trio

from bench.laboratory import Method, Plan, load_rules, mac, read_text
from lvsha.datapath.claims import Claims
from lvsha.datapath.rules import TABLE, ruleset
from lvsha.drill.laboratory import enter
from lvsha.errors import HostError
from lvsha.model import Protocol, parse_address

Carrier = Literal["director", "yardstick", "none"]

START_TIME_MAX: Final = 20.0
STOP_TIME_MAX: Final = 5.0
POLL: Final = 0.02
DIRECTORY: Final = Path("/run/bench")
LOG_SHOWN: Final = 2000


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the virtual service, and what is spoken there."""

    name: str
    number: int
    protocol: Protocol


@asynccontextmanager
async def carrying(
    carrier: Carrier,
    plan: Plan,
    method: Method,
    ports: Collection[Port],
    processors: Collection[int],
) -> AsyncIterator[int | None]:
    """Have frames carried while the context lasts; the process that does it, if one does.

    Args:
        carrier: by what.
        plan: the addresses.
        method: direct routing, or NAT (for the bare loop: both directions).
        ports: the virtual services.
        processors: where it may run.

    Raises:
        HostError: it could not be started; with what it said.
    """
    if carrier == "none":
        yield None
        return
    DIRECTORY.mkdir(exist_ok=True)
    if carrier == "director":
        pair = DIRECTORY / "pair.toml"
        pair.write_text(pair_file(plan, method, ports), encoding="utf-8")
        arguments = ["-m", "lvsha", "run", str(pair), "--node", "director"]
        begun = "director started"
    else:
        load_rules(_rules(plan, method, ports))
        arguments = ["-m", "bench.yardstick", *_ways(method)]
        begun = "ready"
    log = DIRECTORY / f"{carrier}.log"
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            enter("director", [sys.executable, *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        if not await has_said(begun, process, log):
            raise HostError(f"the {carrier} did not start: {read_text(log)[-LOG_SHOWN:]}")
        if processors:
            place(process.pid, processors)
        yield process.pid
        if process.poll() is not None:
            raise HostError(f"the {carrier} has ended: {read_text(log)[-LOG_SHOWN:]}")
    finally:
        with trio.CancelScope(shield=True):
            await stop(process)
        if carrier == "yardstick":
            load_rules(f"delete table netdev {TABLE}\n")


async def has_said(word: str, process: trio.Process, log: Path) -> bool:
    """Wait until a word stands in a log; False if the process ends or is too slow."""
    end_at = trio.current_time() + START_TIME_MAX
    while word not in read_text(log):
        if process.poll() is not None or trio.current_time() >= end_at:
            return False
        await trio.sleep(POLL)
    return True


async def stop(process: trio.Process) -> None:
    """End a process, as kindly as it lets us."""
    process.terminate()
    with trio.move_on_after(STOP_TIME_MAX):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def place(process: int, processors: Collection[int]) -> None:
    """Let all threads of a process run on these processors only."""
    for task in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(task.name), processors)


def pair_file(plan: Plan, method: Method, ports: Collection[Port]) -> str:
    """The text of a pair file of one node, without virtual routers: it holds all addresses."""
    lines = ["[nodes.director]", 'interfaces = { outside = "outside", inside = "inside" }']
    for port in ports:
        lines += [
            "[[services]]",
            f'name = "{port.name}"',
            f'address = "{plan.virtual}"',
            f"port = {port.number}",
            f'protocol = "{port.protocol.name.lower()}"',
            f'method = "{method}"',
            f'servers = [{{ address = "{plan.address("inside", "server")}" }}]',
        ]
    return "\n".join(lines) + "\n"


def _rules(plan: Plan, method: Method, ports: Collection[Port]) -> str:
    """The director's own rules, for a server that answers from the virtual address."""
    virtual = parse_address(plan.virtual)
    ends = frozenset(bytes((p.protocol,)) + virtual + p.number.to_bytes(2) for p in ports)
    claims = Claims(services=ends, servers=ends if method == "nat" else frozenset())
    return ruleset({wire: mac(wire, "director") for wire in ("outside", "inside")}, claims)


def _ways(method: Method) -> list[str]:
    to_server = mac("inside", "server") + mac("inside", "director")
    to_client = mac("outside", "client") + mac("outside", "director")
    ways = [f"outside:inside:{to_server.hex()}"]
    return ways if method == "dr" else [*ways, f"inside:outside:{to_client.hex()}"]
