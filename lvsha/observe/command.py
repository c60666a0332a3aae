"""``lvsha observe``: listen on a link, and show what one hears."""

import signal
from collections.abc import Sequence
from typing import Final

import trio
from rich.console import Console
from rich.live import Live

from lvsha.datapath import state_machines
from lvsha.model import Protocol, parse_address
from lvsha.observe.display import render
from lvsha.observe.listener import listen
from lvsha.observe.observation import Observation
from lvsha.sync.ipvs.roster import GROUP, PORT

GROUPS: Final = (GROUP, parse_address("ff02::81"))


def observe(
    interface: str,
    console: Console | None,
    *,
    seconds: float | None = None,
    groups: Sequence[bytes] = GROUPS,
    port: int = PORT,
    ports: int = 1,
) -> dict[str, object]:
    """Listen until told to stop, or for a while; returns what is known in the end.

    Args:
        interface: its name.
        console: where to show it meanwhile, if that is a terminal.
        seconds: how long; None until SIGINT or SIGTERM.
        groups: the sync groups.
        port: the sync's first port.
        ports: how many there are.

    Raises:
        HostError: the interface cannot be listened on.
    """
    return trio.run(_observe, interface, console, seconds, groups, range(port, port + ports))


async def _observe(
    interface: str,
    console: Console | None,
    seconds: float | None,
    groups: Sequence[bytes],
    ports: range,
) -> dict[str, object]:
    machines = {
        int(Protocol.TCP): state_machines.tcp(),
        int(Protocol.UDP): state_machines.udp(),
        int(Protocol.SCTP): state_machines.sctp(),
    }
    observation = Observation(frozenset(groups), ports, machines, trio.current_time())
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(now: float) -> None:
            if console is not None and console.is_terminal:
                live.update(render(observation.status(now), interface), refresh=True)

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def until_told() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(until_told)
                await listen(interface, groups, observation, show, seconds)
                nursery.cancel_scope.cancel()
    return observation.status(trio.current_time())
