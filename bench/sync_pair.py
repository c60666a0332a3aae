"""A pair of directors of which one forwards and the other listens; the real program, twice.

The pair file is that of `bench.carriers` with a virtual router, and with a sealed ``[sync]``
or without. The two see each other's advertisements on a wire of their own. Without sync the
peer is not started: then nothing but the sync makes the difference.
"""

import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from bench.carriers import DIRECTORY, LOG_SHOWN, Port, has_said, pair_file, place, stop
from bench.laboratory import Plan, read_text
from bench.programs import put_first
from bench.sync_node import KEY
from lvsha.drill.laboratory import enter
from lvsha.errors import HostError
from lvsha.sync.key_file import FORMAT

_ADVERT_INTERVAL: Final = 0.5
_PRIORITIES: Final = {"director": 150, "peer": 100}
_WIRES: Final = ("outside", "inside", "sync", "vrrp")
_OWN: Final = "10.4.0.10/24"
"""On the wire of the advertisements, which must have one of the addresses."""
_KEY_FILE: Final = DIRECTORY / "sync.key"
_MASTER: Final = "new=MASTER"
_COMPLETE: Final = "state=REPLICATE"


def synced_pair_file(plan: Plan, ports: Collection[Port], *, synced: bool) -> str:
    """The text of a pair file with both nodes."""
    alone = pair_file(plan, "dr", ports)
    services = alone[alone.index("[[services]]") :]
    lines = [
        "[[virtual_routers]]",
        'name = "web"',
        "vrid = 51",
        'interface = "vrrp"',
        f'addresses = ["{_OWN}", "{plan.virtual}/{plan.host_length}@outside"]',
        f"advert_interval = {_ADVERT_INTERVAL}",
    ]
    if synced:
        lines += ["[sync]", 'interface = "sync"', f'key_file = "{_KEY_FILE}"']
    wires = ", ".join(f'{wire} = "{wire}"' for wire in _WIRES)
    for name, priority in _PRIORITIES.items():
        lines += [f"[nodes.{name}]", f"priority = {priority}", f"interfaces = {{ {wires} }}"]
    return "\n".join(lines) + "\n" + services


@asynccontextmanager
async def pair(
    plan: Plan,
    ports: Collection[Port],
    *,
    synced: bool,
    director_on: Collection[int],
    peer_on: Collection[int],
) -> AsyncIterator[int]:
    """Have the pair run while the context lasts; the process of the one that forwards.

    Raises:
        HostError: one of them did not start, or has ended; with what it said.
    """
    DIRECTORY.mkdir(exist_ok=True)
    _KEY_FILE.touch(mode=0o600)
    _KEY_FILE.write_text(f"{FORMAT} current {base64.b64encode(KEY).decode()}\n", encoding="ascii")
    file = DIRECTORY / "pair.toml"
    file.write_text(synced_pair_file(plan, ports, synced=synced), encoding="utf-8")
    async with _node("director", file, director_on, _MASTER) as director:
        if synced:
            async with _node("peer", file, peer_on, _COMPLETE):
                yield director
        else:
            yield director


@asynccontextmanager
async def _node(
    name: str, file: Path, processors: Collection[int], word: str
) -> AsyncIterator[int]:
    """One node, from when a word stands in its log."""
    log = DIRECTORY / f"{name}.log"
    runtime = DIRECTORY / f"lvsha-{name}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "lvsha", "run", str(file), "--node", name]
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            enter(name, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"LVSHA_RUNTIME_DIR": str(runtime)},
        )
    try:
        put_first(process.pid)
        if not await has_said(word, process, log):
            raise HostError(f"the {name} did not start: {read_text(log)[-LOG_SHOWN:]}")
        if processors:
            place(process.pid, processors)
        yield process.pid
        if process.poll() is not None:
            raise HostError(f"the {name} has ended: {read_text(log)[-LOG_SHOWN:]}")
    finally:
        with trio.CancelScope(shield=True):
            await stop(process)
