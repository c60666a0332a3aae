"""Tell the service manager how this process is: the protocol of ``sd_notify(3)``.

A datagram of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names. Where there is
none, nothing is told to nobody. The watchdog is the manager's: it says in ``$WATCHDOG_USEC``
how long it waits for a sign of life, and ends a process that gives none.

What always holds: telling returns at once and raises nothing. What could not be told waits,
the newest value of each name, and goes with the next datagram; it is counted.
"""

import os
import socket
from collections.abc import Mapping
from typing import Final, Protocol

from lvsha.counters import Counters

STATUS_CHARACTERS_MAX: Final = 500
"""A status line is for people; a datagram must not be too long for its socket."""
_MICROSECONDS: Final = 1e6


class ServiceManager(Protocol):
    """Who has started this process and wants to know how it is."""

    watchdog: float | None
    """Seconds within which a sign of life is expected; None for never."""

    def tell(self, **assignments: str) -> None:
        """Tell something, by the names of ``sd_notify(3)``; returns at once."""
        ...


class Systemd:
    """What ``$NOTIFY_SOCKET`` leads to.

    Args:
        environment: of this process.

    Attributes:
        watchdog: seconds within which a sign of life is expected; None for never.
        counters: datagrams that were not taken.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.counters = Counters()
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog = None if self._address is None else _watchdog(environment)
        self._untold: dict[str, str] = {}

    def tell(self, **assignments: str) -> None:
        """Send one datagram, with what could not be told before."""
        if self._address is None:
            return
        self._untold |= {name: _one_line(value) for name, value in assignments.items()}
        text = "\n".join(f"{name}={value}" for name, value in self._untold.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), self._address)
        except OSError:
            self.counters.add("datagrams_not_taken")
            return
        self._untold.clear()


class Nobody:
    """No service manager."""

    watchdog: float | None = None

    def tell(self, **assignments: str) -> None:
        """Nobody listens."""


def _address(text: str) -> str | None:
    """Where to send: a path, or a name that begins with @ and has no file."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """The watchdog's time, if it is meant for this process and not for its parent."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    process = environment.get("WATCHDOG_PID", str(os.getpid()))
    if process != str(os.getpid()) or not microseconds.isdecimal() or not int(microseconds):
        return None
    return int(microseconds) / _MICROSECONDS


def _one_line(value: str) -> str:
    return " ".join(value.split())[:STATUS_CHARACTERS_MAX]
