"""Checks by a program, and as whom it runs.

How it is started, run and ended is in `lvsha.programs`. Here it also loses the way to new
capabilities, and without a user of its own it is run by nobody.
"""

import math
import os
import pwd
from collections.abc import Mapping, Sequence
from typing import Final

from lvsha.errors import ConfigError
from lvsha.health.opinions import Finding
from lvsha.programs import WITHOUT_CAPABILITIES, Programs, becoming, starter

NOBODY: Final = "nobody"
DYNAMIC_OFFSET: Final = 2
"""keepalived's MISC_CHECK: exit status 2 to 255 is the weight and 2."""
_NO_MORE: Final = "--no-new-privs"


def identity(user: str | None) -> tuple[str, ...]:
    """The words before a command that give up what it must not have.

    Args:
        user: who is to run it. By default that is nobody, or, if this program is not root,
            who runs this program, without its capabilities.

    Raises:
        ConfigError: there is no such user, or this program cannot become another.
    """
    own = os.geteuid()
    if user is None and own:
        return starter(WITHOUT_CAPABILITIES, _NO_MORE)
    name = user or NOBODY
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigError(f"user: expected one of this machine, not {name!r}") from error
    if entry.pw_uid == own:
        return starter(WITHOUT_CAPABILITIES, _NO_MORE) if own else starter()
    if own:
        raise ConfigError(f"user: expected none, not {name!r}, because root does not run this")
    return starter(*becoming(entry), _NO_MORE)


async def probe_script(
    programs: Programs,
    words: Sequence[str],
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    dynamic: bool,
) -> Finding:
    """Run a check: exit status 0 is good, and others are as `DYNAMIC_OFFSET` says.

    Args:
        programs: runs it.
        words: from `identity`.
        command: the program and its arguments.
        environment: what it is told.
        dynamic: whether an exit status may ask for a weight.

    Raises:
        OSError: nothing can be started.
    """
    # Who probes sets the time limit; the program does not outlive it.
    outcome = await programs.carry_out(words, command, math.inf, environment)
    status = outcome.code
    if status is None:
        return Finding(passed=False, reason=outcome.trouble)
    if not status:
        return Finding(passed=True, reason="exit status 0")
    if status < 0:
        return Finding(passed=False, reason=f"ended by signal {-status}")
    if dynamic and status >= DYNAMIC_OFFSET:
        weight = status - DYNAMIC_OFFSET
        return Finding(passed=True, reason=f"asks for weight {weight}", weight=weight)
    return Finding(passed=False, reason=f"exit status {status}")
