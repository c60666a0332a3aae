"""Checks by a program, and as whom it runs.

How it is run and ended is in `lvsha.programs`. Beside the user ``setpriv`` takes away the
(ambient) capabilities that a director without root has for itself and would leave to its
children, and the way to new ones.
"""

import math
import os
import pwd
from collections.abc import Mapping, Sequence
from typing import Final

from lvsha.errors import ConfigError
from lvsha.health.opinions import Finding
from lvsha.programs import carry_out

NOBODY: Final = "nobody"
DYNAMIC_OFFSET: Final = 2
"""keepalived's MISC_CHECK: exit status 2 to 255 is the weight and 2."""
_WITHOUT_CAPABILITIES: Final = ("setpriv", "--ambient-caps=-all", "--no-new-privs", "--")


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
        return _WITHOUT_CAPABILITIES
    name = user or NOBODY
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigError(f"user: expected one of this machine, not {name!r}") from error
    if entry.pw_uid == own:
        return _WITHOUT_CAPABILITIES if own else ()
    if own:
        raise ConfigError(f"user: expected none, not {name!r}, because root does not run this")
    return (
        "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups",
        "--no-new-privs", "--",
    )  # fmt: skip


async def probe_script(
    prefix: Sequence[str], command: Sequence[str], environment: Mapping[str, str], *, dynamic: bool
) -> Finding:
    """Run a check: exit status 0 is good, and others are as `DYNAMIC_OFFSET` says.

    Args:
        prefix: from `identity`.
        command: the program and its arguments.
        environment: what it is told.
        dynamic: whether an exit status may ask for a weight.

    Raises:
        OSError: it cannot be started.
    """
    # Who probes sets the time limit; the program does not outlive it.
    status = (await carry_out([*prefix, *command], math.inf, environment)).code
    assert status is not None, "its time is not limited"
    if not status:
        return Finding(passed=True, reason="exit status 0")
    if status < 0:
        return Finding(passed=False, reason=f"ended by signal {-status}")
    if dynamic and status >= DYNAMIC_OFFSET:
        weight = status - DYNAMIC_OFFSET
        return Finding(passed=True, reason=f"asks for weight {weight}", weight=weight)
    return Finding(passed=False, reason=f"exit status {status}")
