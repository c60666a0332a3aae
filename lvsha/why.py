"""Answer ``lvsha why``: ask this node, and read what the other one has exported."""

import json
import stat
import time
from pathlib import Path
from typing import Final

from lvsha import control
from lvsha.errors import ConfigError
from lvsha.failover.black_box import Export
from lvsha.failover.timeline import describe, last_transition

EXPORT_BYTES_MAX: Final = 4 * 1024 * 1024


def ask_why() -> object:
    """What the director of this network namespace remembers, as JSON values."""
    return control.ask("why")


def explain(peers: list[Path], router: str | None) -> list[str]:
    """The last transition, line by line.

    Args:
        peers: control sockets of other nodes, or files with what they have exported.
        router: of which virtual router; None for the one that changed last.

    Raises:
        ConfigError: a file is no export.
        HostError: a director does not answer.
    """
    exports = [Export.parse(ask_why(), "this node"), *(_export(peer) for peer in peers)]
    timeline = last_transition(exports, router)
    if timeline is None:
        of = "" if router is None else f" of {router}"
        return [f"no node remembers a change of master{of}"]
    return describe(timeline, _time_of_day)


def _export(peer: Path) -> Export:
    try:
        if stat.S_ISSOCK(peer.stat().st_mode):
            return Export.parse(control.ask("why", path=peer), str(peer))
        with peer.open(encoding="utf-8") as file:
            text = file.read(EXPORT_BYTES_MAX + 1)
        if len(text) > EXPORT_BYTES_MAX:
            raise ConfigError(f"{peer}: expected at most {EXPORT_BYTES_MAX} bytes")
        return Export.parse(json.loads(text), str(peer))
    except OSError as error:
        raise ConfigError(f"{peer}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{peer}: expected what lvsha why --json prints") from error


def _time_of_day(seconds: float) -> str:
    """Seconds since 1970 as UTC with milliseconds."""
    whole, part = divmod(seconds, 1)
    try:
        day = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(whole))
    except (OverflowError, ValueError):
        return f"{seconds:.3f}"
    return f"{day}.{int(part * 1000):03}Z"
