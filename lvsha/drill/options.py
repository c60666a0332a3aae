"""What a person may choose about a drill, and nothing else.

The values cross from the process that the person started to the one inside the
private namespaces as one JSON text; `encode` and `decode` are a pair.

Times are seconds.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from lvsha.errors import ConfigError

Method = Literal["nat", "dr", "tun"]
Family = Literal[4, 6]
Failure = Literal[
    "crash",
    "power",
    "both",
    "mutual",
    "handover",
    "stop",
    "hang",
    "link",
    "sync",
    "partition",
    "return",
    "reload",
]

METHODS: Final[tuple[Method, ...]] = get_args(Method)
FAMILIES: Final[tuple[Family, ...]] = get_args(Family)
FAILURES: Final[tuple[Failure, ...]] = get_args(Failure)

LONG_CONNECTIONS_MAX: Final = 5000
"""Streams and idle connections; each costs a task in the client and one in a server."""

CHURN_MAX: Final = 500.0
"""New connections a second; beyond it one client on one core measures itself."""

SYNC_LOSS_MAX: Final = 90
"""Per cent; with more than that the directors do not even find each other in time."""


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """One drill, in full.

    Attributes:
        method: how packets reach the real servers.
        family: 4 or 6, of every address in the drill.
        streams: long TCP connections that exchange a message every ``message_interval``.
        idle: TCP connections that are silent while the failure happens.
        churn: new short TCP connections a second.
        failure: what happens to the director that holds the virtual address.
        then_return: whether a second act brings the failed director back.
        advert_interval: of VRRP.
        sync_loss: how many of 100 frames on the sync network are dropped, at random.
        virtual_mac: whether the virtual router has a MAC address of its own.
        drain: whether one real server is drained, at weight 0, from before the first act on.
        directory: where the pair file, the logs and the reports are left.
        json: where the JSON report goes; in ``directory`` by default.
        html: where the page goes; in ``directory`` by default.
        message_interval: between two messages of one stream.
        probe_interval: between two datagrams of the UDP probe.
        observe: how long each act is watched after its moment.
    """

    method: Method = "nat"
    family: Family = 4
    streams: int = 100
    idle: int = 100
    churn: float = 20.0
    failure: Failure = "crash"
    then_return: bool = True
    advert_interval: float = 0.1
    sync_loss: int = 0
    virtual_mac: bool = False
    drain: bool = False
    directory: Path = Path("drill")
    json: Path | None = None
    html: Path | None = None
    message_interval: float = 0.1
    probe_interval: float = 0.005
    observe: float = 4.0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: an option is out of its range; names it.
        """
        rules: tuple[tuple[bool, str], ...] = (
            (self.method in METHODS, f"--method: expected one of {', '.join(METHODS)}"),
            (self.family in FAMILIES, "--family: expected 4 or 6"),
            (self.failure in FAILURES, f"--failure: expected one of {', '.join(FAILURES)}"),
            (
                0 <= self.streams <= LONG_CONNECTIONS_MAX,
                f"--streams: expected 0 to {LONG_CONNECTIONS_MAX}",
            ),
            (
                0 <= self.idle <= LONG_CONNECTIONS_MAX,
                f"--idle: expected 0 to {LONG_CONNECTIONS_MAX}",
            ),
            (0 <= self.churn <= CHURN_MAX, f"--churn: expected 0 to {CHURN_MAX:.0f} a second"),
            (
                0.01 <= self.advert_interval <= 10,
                "--advert-interval: expected 0.01 to 10 seconds",
            ),
            (
                0 <= self.sync_loss <= SYNC_LOSS_MAX,
                f"--sync-loss: expected 0 to {SYNC_LOSS_MAX} per cent",
            ),
            (0.01 <= self.message_interval <= 10, "message interval: expected 0.01 to 10 seconds"),
            (0.001 <= self.probe_interval <= 1, "probe interval: expected 0.001 to 1 second"),
            (1 <= self.observe <= 120, "--observe: expected 1 to 120 seconds"),
        )
        for holds, expected in rules:
            if not holds:
                raise ConfigError(f"drill: {expected}")

    @property
    def json_path(self) -> Path:
        """Where the JSON report is written."""
        return self.json or self.directory / "report.json"

    @property
    def html_path(self) -> Path:
        """Where the page is written."""
        return self.html or self.directory / "report.html"

    def encode(self) -> str:
        """Write the options as JSON with absolute paths."""
        values = asdict(self)
        for name in ("directory", "json", "html"):
            path = values[name]
            values[name] = None if path is None else str(path.absolute())
        return json.dumps(values)


def decode_options(text: str) -> DrillOptions:
    """Read what `DrillOptions.encode` wrote."""
    values = json.loads(text)
    for name in ("directory", "json", "html"):
        values[name] = None if values[name] is None else Path(values[name])
    return DrillOptions(**values)
