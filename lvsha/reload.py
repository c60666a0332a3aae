"""Answer SIGHUP: read the pair file again, and say what a restart would change.

A running director changes nothing of itself by that. What the operator hears, in the log and
from the service manager, is whether the file is in order and which of its pieces are others
than those that run.
"""

from pathlib import Path

import structlog

from lvsha.config import Pair, load_pair
from lvsha.errors import ConfigError

_log = structlog.get_logger()


def compare(running: Pair, file: Path) -> str:
    """Read a pair file and say, in one line, how it differs from the one that runs."""
    try:
        found = load_pair(file)
    except ConfigError as error:
        _log.error("the pair file is wrong; nothing has changed", error=str(error))
        return "running; the pair file is wrong: see the log"
    ours, theirs = running.digests(), found.digests()
    changed = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    if not changed:
        _log.info("the pair file is the one that runs")
        return "running; the pair file has not changed"
    _log.warning("the pair file has changed; a restart takes it over", changed=changed)
    return f"running; a restart would change {', '.join(changed)}"
