"""For how long health checks keep everything else on the loop waiting: ``python -m bench.health``.

Checks of HTTP or HTTPS are tried on servers in a second process, on the loopback. Each row is
one turn of it: how many checks there were in which interval, the longest and the 99.9th
percentile of the steps of Trio's loop during it, the share of a processor that it took, and
what the same loop did with no check at all, because a machine with other work stops a
program now and then whatever that does. A step is all that is done between two times at
which the loop waits or would wait for the network, so it is as long as a frame may wait.

It has no opinion of what is too long.
"""

import random
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import trio
import typer

from lvsha.config_health import Check
from lvsha.datapath.garbage import short_pauses
from lvsha.health.opinions import Finding
from lvsha.health.prober import NetworkProber
from lvsha.health.runner import STARTS_PER_SECOND, Assignment, Runner
from lvsha.health.target import Target
from lvsha.process import let_threads_in

HOST: Final = "127.0.0.1"
PROBES_MAX: Final = 256
START_MAX: Final = 10.0
PAGE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nall well"
ADDRESSES: Final = 250
"""Servers are told apart by their address in 127.0.0.0/8, all of which is one process."""


class Steps(trio.abc.Instrument):
    """Times what the loop does between two waits: by the clock, and of the processor."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.used: list[float] = []
        self._began: tuple[float, float] | None = None

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio's interface
        """The loop goes on."""
        self._began = time.perf_counter(), time.thread_time()

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - Trio's interface
        """The loop waits."""
        if self._began is not None:
            began, used = self._began
            self.taken.append(time.perf_counter() - began)
            self.used.append(time.thread_time() - used)


def serve(certificate: str) -> None:
    """Serve until ended: HTTP, and HTTPS if there is a certificate; says its port first."""
    context: ssl.SSLContext | None = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)

    async def handle(stream: trio.abc.Stream) -> None:
        try:
            if context is not None:
                stream = trio.SSLStream(stream, context, server_side=True)
            await stream.receive_some(10_000)
            await stream.send_all(PAGE)
        except trio.BrokenResourceError:
            return
        finally:
            await trio.aclose_forcefully(stream)

    async def listen() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="0.0.0.0", backlog=4096)  # noqa: S104
        sys.stdout.write(f"{listener.socket.getsockname()[1]}\n")
        sys.stdout.flush()
        await trio.serve_listeners(handle, [listener])

    trio.run(listen)


@contextmanager
def a_server(certificate: str) -> Iterator[int]:
    """The port of a server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.health", "--serve", "--certificate", certificate],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def make_certificate(directory: str) -> str:
    """A certificate that signs itself, with its key, made by openssl."""
    path = Path(directory) / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", str(path), "-out", f"{path}.crt", "-days", "1", "-subj", "/CN=x"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return str(path)


def measure(kind: str, number: int, interval: float, seconds: float, port: int) -> str:
    """One turn, as a line of a table."""
    keys = {"verify": False} if kind == "https" else {}
    check = Check.model_validate(
        {"type": kind, "body": "well", "interval": interval, "timeout": 5.0, **keys}
    )
    steps, found = Steps(), {True: 0, False: 0}

    def report(_: Assignment[int], finding: Finding) -> bool:
        found[finding.passed] += 1
        return True

    async def run() -> float:
        prober = NetworkProber()
        await prober.prepare([check], [])
        runner = Runner(prober, report, PROBES_MAX, random.Random(1))
        assignments = [
            Assignment(each, check, Target(f"127.0.1.{each % ADDRESSES + 1}", port))
            for each in range(number)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run, assignments)
            # The start, which is another load, does not count.
            await trio.sleep(number / STARTS_PER_SECOND + min(interval, START_MAX))
            found.update({True: 0, False: 0})
            trio.lowlevel.add_instrument(steps)
            nursery.start_soon(_tick)
            began = time.process_time()
            await trio.sleep(seconds)
            used = time.process_time() - began
            trio.lowlevel.remove_instrument(steps)
            nursery.cancel_scope.cancel()
        return used

    with short_pauses():
        used = trio.run(run)
    taken = sorted(steps.taken)
    longest, rare = taken[-1] * 1000, taken[int(len(taken) * 0.999)] * 1000
    return (
        f"| {kind} | {number:,} / {interval:g} s | {found[True] / seconds:.0f} | {found[False]} "
        f"| {max(steps.used) * 1000:.1f} | {longest:.1f} | {rare:.1f} "
        f"| {100 * used / seconds:.0f} % |"
    )


async def _tick() -> None:
    """Keep the loop turning, as a forwarder does."""
    while True:  # noqa: ASYNC110 - the turns are the point
        await trio.sleep(0.001)


def main(
    number: Annotated[int, typer.Option(min=1, max=10_000, help="Checks.")] = 2000,
    interval: Annotated[float, typer.Option(min=1, max=3600, help="Of each check.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="That count.")] = 15.0,
    as_server: Annotated[bool, typer.Option("--serve", hidden=True)] = False,
    certificate: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure the longest step of the loop while checks are tried."""
    if as_server:
        serve(certificate)
        return
    let_threads_in()  # as a director does
    sys.stdout.write(
        "| type | checks | passed a second | failed | longest step, ms of the processor "
        "| by the clock | 99.9 % | processor |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = make_certificate(directory)
        for kind in ("none", "http", "https"):
            with a_server(path if kind == "https" else "") as port:
                if kind == "none":
                    line = measure("http", 1, 3600.0, seconds, port)
                    line = line.replace("| http | 1 / 3600 s", "| none | 0")
                else:
                    line = measure(kind, number, interval, seconds, port)
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
