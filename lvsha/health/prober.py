"""Try checks on real servers: the seam between the runner and the network.

`NetworkProber` is the real thing. Whatever a server does, `probe` returns a `Finding` within
the check's time-out and has closed what it opened; an exception that nobody thought of is one
too, and a line in the log, a few a minute. Certificates and users are looked up once,
in `prepare`, because either may take tens of milliseconds.
"""

import math
import os
import ssl
from collections.abc import Iterable, Sequence
from typing import Protocol, assert_never

import h11
import structlog
import trio

from lvsha.config_health import Check
from lvsha.errors import ConfigError, WireError
from lvsha.health.datagrams import passes_silently, probe_dns, probe_ping, probe_udp
from lvsha.health.opinions import Finding, quoted
from lvsha.health.script import identity, probe_script
from lvsha.health.streams import probe_http, probe_smtp, probe_tcp
from lvsha.health.target import Target
from lvsha.health.tls import THREADS_MAX, Tls
from lvsha.log import LimitedLog
from lvsha.process_table import OWN_FAULTS
from lvsha.programs import Programs


class Prober(Protocol):
    """What tries checks, and runs commands."""

    async def prepare(self, checks: Iterable[Check], users: Iterable[str | None]) -> None:
        """Look up what these checks, and the commands of these users, need.

        Raises:
            ConfigError: something is not there.
        """
        ...

    async def probe(self, check: Check, target: Target) -> Finding:
        """Try a check once."""
        ...

    async def run(
        self, user: str | None, command: Sequence[str], environment: dict[str, str]
    ) -> str | None:
        """Run a command, until cancelled; None if that went well, else what went wrong."""
        ...


class NetworkProber:
    """This machine's sockets and processes."""

    def __init__(self) -> None:
        self._contexts: dict[tuple[bool, str], ssl.SSLContext] = {}
        self._identities: dict[str | None, tuple[str, ...]] = {}
        self._log = LimitedLog(structlog.get_logger("health"))
        self._turns = trio.Lock()
        self._programs = Programs()
        self._threads = trio.CapacityLimiter(THREADS_MAX)

    async def prepare(self, checks: Iterable[Check], users: Iterable[str | None]) -> None:
        """Read certificates and look up users, in a thread."""
        checks = list(checks)
        trusts = {_trust(check) for check in checks if check.type == "https"}
        names = {check.user for check in checks if check.type == "script"} | set(users)
        for trust in trusts - self._contexts.keys():
            self._contexts[trust] = await trio.to_thread.run_sync(_context, *trust)
        for name in names - self._identities.keys():
            self._identities[name] = await trio.to_thread.run_sync(identity, name)

    async def probe(self, check: Check, target: Target) -> Finding:
        """Try a check once, for its time-out at most."""
        try:
            return await self._in_time(check, target)
        except Exception as error:  # noqa: BLE001 - logged, and the finding tells it
            # The peer tries the same server next, and must not die of it either.
            self._log.warning(
                "a probe raised an exception",
                trio.current_time(),
                type=check.type,
                address=target.address,
                port=target.port,
                exc_info=error,
            )
            reason = f"this node could not check: {type(error).__name__}: {quoted(str(error))}"
            return Finding(False, reason)

    async def _in_time(self, check: Check, target: Target) -> Finding:
        with trio.move_on_after(check.timeout):
            try:
                return await self._probe(check, target)
            except ssl.SSLError as error:
                return Finding(False, f"TLS: {_of_tls(error)}")
            except TimeoutError:
                # Of a connection by the kernel, or of a search in the body.
                return Finding(False, "took too long")
            except OSError as error:
                return Finding(False, _of_system(error))
            except trio.BrokenResourceError as error:
                return Finding(False, _of_stream(error))
            except (h11.RemoteProtocolError, WireError) as error:
                return Finding(False, f"not HTTP: {quoted(str(error))}")
            except EOFError:
                return Finding(False, "closed before the end")
        if passes_silently(check):
            return Finding(True, f"no error within {check.timeout:g} s")
        return Finding(False, f"no answer within {check.timeout:g} s")

    def _tls(self, check: Check) -> Tls:
        return Tls(self._contexts[_trust(check)], self._turns, self._threads)

    async def _probe(self, check: Check, target: Target) -> Finding:
        match check.type:
            case "tcp":
                return await probe_tcp(target)
            case "http":
                return await probe_http(check, target, None)
            case "https":
                return await probe_http(check, target, self._tls(check))
            case "dns":
                return await probe_dns(check, target)
            case "udp":
                return await probe_udp(check, target)
            case "ping":
                return await probe_ping(target)
            case "smtp":
                return await probe_smtp(check, target)
            case "script":
                return await probe_script(
                    self._programs,
                    self._identities[check.user],
                    check.command or (),
                    {"LVSHA_ADDRESS": target.address, "LVSHA_PORT": str(target.port)},
                    dynamic=check.dynamic,
                )
            case _:
                assert_never(check.type)

    async def run(
        self, user: str | None, command: Sequence[str], environment: dict[str, str]
    ) -> str | None:
        """Run a command as a user that was prepared."""
        try:
            words = self._identities[user]
            outcome = await self._programs.carry_out(words, command, math.inf, environment)
        except OSError as error:
            return _of_system(error)
        return None if outcome.code == 0 else str(outcome)


def _trust(check: Check) -> tuple[bool, str]:
    return check.verify, str(check.ca_file or "")


def _context(verify: bool, ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"ca_file: {ca_file} cannot be used: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return quoted(error.verify_message)
    return quoted(error.reason or str(error))


def _of_system(error: OSError) -> str:
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in OWN_FAULTS:
        return f"this node could not check: {text}"
    return text


def _of_stream(error: trio.BrokenResourceError) -> str:
    """A broken stream tells what broke it."""
    cause = error.__cause__
    return _of_system(cause) if isinstance(cause, OSError) else "the connection broke"
