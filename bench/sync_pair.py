"""A pair of directors of which one forwards and the other listens; the real program, twice.

The pair file is that of `bench.carriers` with a virtual router, and with a sealed ``[sync]``
or without. The two see each other's advertisements on a wire of their own. Without sync the
peer is not started: then nothing but the sync makes the difference.
"""

import base64
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from bench.carriers import DIRECTORY, LOG_SHOWN, POLL, Port, pair_file, place
from bench.laboratory import Plan, read_text
from bench.programs import put_first
from bench.sync_node import KEY
from lvsha.drill.directors import Director, Status
from lvsha.drill.laboratory import ROUTER
from lvsha.errors import HostError

START_TIME_MAX: Final = 30.0
STOP_TIME_MAX: Final = 10.0
_ADVERT_INTERVAL: Final = 0.5
_PRIORITIES: Final = {"director": 150, "peer": 100}
_KEY_FILE: Final = DIRECTORY / "sync.key"


def synced_pair_file(plan: Plan, ports: Collection[Port], *, synced: bool) -> str:
    """The text of a pair file with both nodes."""
    alone = pair_file(plan, "dr", ports)
    services = alone[alone.index("[[services]]") :]
    lines = [
        "[[virtual_routers]]",
        f'name = "{ROUTER}"',
        "vrid = 51",
        'interface = "vrrp"',
        f'addresses = ["{plan.virtual}/{plan.host_length}@outside"]',
        f"advert_interval = {_ADVERT_INTERVAL}",
    ]
    if synced:
        lines += ["[sync]", 'interface = "sync"', f'key_file = "{_KEY_FILE}"']
    for name, priority in _PRIORITIES.items():
        wires = ", ".join(f'{wire} = "{wire}"' for wire in ("outside", "inside", "sync", "vrrp"))
        lines += [f"[nodes.{name}]", f"priority = {priority}", f"interfaces = {{ {wires} }}"]
    return "\n".join(lines) + "\n" + services
