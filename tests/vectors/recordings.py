"""Recordings of the kernel's director: what is in their files.

A folder holds JSON files of the schema that ``kernel/README.md`` describes. Each has a kind
and scenarios; a scenario has a configuration in ipvsadm's words and steps in order.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from lvsha.model import parse_address

KERNEL = Path(__file__).parent / "kernel"
"""The recordings that belong to the project."""

Endpoint = tuple[bytes, int]


class RecordedPacket(TypedDict):
    """A packet that left the kernel's director."""

    side: str
    dmac: str
    pkt: str


class Counts(TypedDict):
    """What ``ipvsadm -Ln`` says of a server."""

    weight: int
    active: int
    inactive: int


class Datagram(TypedDict):
    """A sync datagram that the master daemon sent."""

    src: str
    dst: str
    ttl: int
    payload: str


Step = TypedDict(
    "Step",
    {
        "op": str,
        "t": float,
        "side": str,
        "in": str,
        "out": list[RecordedPacket],
        "note": str,
        "s": float,
        "cmds": list[str],
        "lines": list[str],
        "ev": str,
        "conn": str,
        "state": str | None,
        "left_s": int,
        "nominal_s": int,
        "forwarded": bool,
        "tcp": int,
        "tcpfin": int,
        "udp": int,
        "c": str,
        "v": str,
        "d": str | None,
        "reply": str,
        "dests": dict[str, Counts],
        "set": dict[str, str | int],
        "cmd": str,
        "stdin": str,
        "rc": int,
        "err": str,
        "text": str,
        "path": str,
        "payload": str,
        "proc": list[str],
        "datagrams": list[Datagram],
        "waited": float,
    },
    total=False,
)
"""One step; which keys it has depends on ``op``. Output of a command is in ``out`` as text:
see `printed`."""


class Mark(TypedDict):
    """Packets to a prefix that get a firewall mark."""

    dst: str
    mark: int


class Scenario(TypedDict, total=False):
    """A recorded scenario."""

    name: str
    note: str
    vips: list[str]
    local: list[str]
    marks: list[Mark]
    sysctl: dict[str, str | int]
    hosts: str
    services_file: list[str]
    config: list[str]
    steps: list[Step]


class Recording(TypedDict):
    """A file."""

    kind: str
    scenarios: list[Scenario]


def load(path: Path) -> Recording:
    """Read one file."""
    return cast("Recording", json.loads(path.read_text(encoding="utf-8")))


def files(folder: Path = KERNEL) -> list[Path]:
    """The recordings in a folder, by name."""
    return sorted(folder.glob("*.json"))


def scenarios(kind: str) -> list[Scenario]:
    """The recorded scenarios of a kind."""
    return load(KERNEL / f"{kind}.json")["scenarios"]


def printed(step: Step) -> str:
    """What the step's command printed."""
    text = cast("object", step["out"])
    assert isinstance(text, str)
    return text


def parse_endpoint(text: str) -> Endpoint:
    """Address and port from ``192.0.2.1:80`` or ``[2001:db8::1]:80``."""
    address, _, port = text.rpartition(":")
    return parse_address(address.strip("[]")), int(port)


def without_time_left(lines: Sequence[str]) -> list[str]:
    """Lines of ``ipvsadm -Lnc`` without the second column, their blanks squeezed, sorted."""
    return sorted(" ".join(line.split()[:1] + line.split()[2:]) for line in lines)
