"""Make the probe that the pair file asks for."""

from collections.abc import Collection

from lvsha.config_tracking import Tracker
from lvsha.failover.tracking import Reading
from lvsha.notifications import RunProgram
from lvsha.tracking.gateways import Gateway
from lvsha.tracking.probes import (
    InThread,
    NumberInFile,
    Probe,
    Script,
    read_existence,
    read_processes,
)


def make_probe(
    tracker: Tracker,
    interface: str | None,
    virtual: Collection[bytes],
    run_program: RunProgram,
) -> Probe:
    """The probe of a tracker that looks outside the director.

    Args:
        tracker: of the pair file.
        interface: what its role is on this machine.
        virtual: addresses of virtual routers, from which no gateway is asked.
        run_program: runs scripts.
    """
    seconds_max = tracker.seconds_at_most
    match tracker.kind:
        case "gateway":
            assert tracker.address is not None
            return Gateway(tracker.address.packed, interface, tracker.method, seconds_max, virtual)
        case "script":
            assert tracker.command is not None
            return Script(tracker.name, tracker.command, tracker.user, seconds_max, run_program)
        case "file":
            return _file(tracker)
        case "process":
            process = tracker.process
            assert process is not None
            return InThread(
                lambda: read_processes(
                    process,
                    full_command=tracker.full_command,
                    quorum=tracker.quorum,
                    quorum_max=tracker.quorum_max,
                ),
                seconds_max,
                lambda: Reading(up=False, detail="the processes take too long to read"),
            )
        case _:
            raise AssertionError(f"{tracker.kind} is read from the director's own tables")


def _file(tracker: Tracker) -> Probe:
    path = tracker.path
    assert path is not None
    if tracker.content == "number":
        file = NumberInFile(path)
        return InThread(file.read, tracker.seconds_at_most, file.late)
    return InThread(
        lambda: read_existence(path),
        tracker.seconds_at_most,
        lambda: Reading(up=False, detail=f"{path} takes too long to look at"),
    )
