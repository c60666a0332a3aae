"""The examples of docs/sync-protocol.md as values: one datagram of each kind."""

from typing import Final

from lvsha.model import (
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    VrrpState,
    Witness,
    connection_key,
    parse_address,
    template_key,
)
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import (
    LEVEL,
    LEVEL_PLAIN,
    Answer,
    Changes,
    Configuration,
    Duty,
    GapRequest,
    Handover,
    Heartbeat,
    Message,
    Opinions,
    Origin,
    PeerState,
    Progress,
    Question,
    Role,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    Standing,
    Sums,
    SumsRequest,
)
from lvsha.sync.seal import Seal
from lvsha.tally import UNTOLD, Tally


def _east(sequence: int) -> Origin:
    return Origin(1, "east", 5, Role.LEAD, 2, sequence)


_WEST: Final = Origin(1, "west", 6, Role.FOLLOW, 0, 0)


def _connection(
    client: str,
    port: int,
    *,
    virtual_port: int = 80,
    server: str = "10.0.0.5",
    server_port: int = 8080,
    state: int = 1,
    flags: int = 0,
    timeout: float = 900.0,
) -> ConnectionRecord:
    return ConnectionRecord.between(
        protocol=6,
        client=parse_address(client),
        client_port=port,
        virtual=parse_address("192.0.2.1"),
        virtual_port=virtual_port,
        server=parse_address(server),
        server_port=server_port,
        method=ForwardMethod.NAT,
        state=state,
        flags=flags,
        timeout=timeout,
    )


def _call(client: str, found: bytes) -> bytes:
    """The key of a SIP call's template."""
    ends = parse_address(client), 0, parse_address("192.0.2.1"), 5060
    return template_key(connection_key(17, *ends), found)


WEB: Final = _connection("198.51.100.7", 40_000)
CLOSING: Final = _connection(
    "198.51.100.8", 40_001, state=4, flags=int(ConnectionFlag.INACTIVE), timeout=120.0
)
FTP: Final = _connection(
    "198.51.100.7",
    40_002,
    virtual_port=21,
    server="10.0.0.6",
    server_port=21,
    flags=int(ConnectionFlag.OUT_SEQUENCE),
)._replace(details=ConnectionDetails(shifts=(0, 0, 0, 1000, 5, 0), dialogue=(0, 1000, 1)))
CALL: Final = ConnectionRecord(
    _call("198.51.100.7", b"a84b4c76"),
    parse_address("10.0.0.5"),
    5060,
    ForwardMethod.DIRECT_ROUTE,
    0,
    int(ConnectionFlag.TEMPLATE),
    300.0,
    ConnectionDetails(engine="sip"),
)
WEB6: Final = ConnectionRecord.between(
    protocol=6,
    client=parse_address("2001:db8::7"),
    client_port=40_000,
    virtual=parse_address("2001:db8::1"),
    virtual_port=80,
    server=parse_address("fd00::5"),
    server_port=8080,
    method=ForwardMethod.TUNNEL,
    state=1,
    flags=0,
    timeout=900.0,
)
TOLD: Final = (WEB, CLOSING, FTP, CALL)
ENDED: Final = connection_key(
    6, parse_address("198.51.100.9"), 40_003, parse_address("192.0.2.1"), 80
)
ENDED_CALL: Final = _call("198.51.100.9", b"f81d4fae")


def _tally() -> Tally:
    tally = Tally(1)
    for record in TOLD:
        tally.retell(record.key, record.server, record.server_port, UNTOLD, record.state)
    return tally


TALLY: Final = _tally()
_BUCKETS: Final = 1 << 71 | 1 << 73
_DIGEST: Final = bytes(range(16))
_NOT_UP = (("web", bytes((10, 0, 0, 5)), 8080, 1), ("web", bytes((10, 0, 0, 6)), 8080, 0))

# The title of each example, and its messages with their levels.
MESSAGES: Final[dict[str, list[tuple[Message, int]]]] = {
    "A heartbeat": [
        (
            Heartbeat(
                _east(10),
                connections=4,
                digest=_DIGEST,
                leader="",
                state=PeerState.PROBE,
                position=0,
                complete=True,
                level=2,
                speaks=2,
                oldest=1,
                heard=(6,),
                standing=Standing(told=4, total=TALLY.total, is_current=True, established=3),
                duty=Duty(VrrpState.MASTER, Witness.REACHABLE, 100),
            ),
            LEVEL,
        )
    ],
    "Changes": [(Changes(_east(10), list(TOLD), [ENDED, ENDED_CALL]), LEVEL)],
    "Changes of IPv6": [(Changes(_east(11), [WEB6], []), LEVEL)],
    "A snapshot of two buckets": [
        (SnapshotRequest(_WEST, "east", 5, 11, _BUCKETS), LEVEL),
        (SnapshotBegin(_east(12), _BUCKETS), LEVEL),
        (SnapshotChunk(_east(13), 12, [WEB, CLOSING]), LEVEL),
        (SnapshotEnd(_east(14), 12, 2), LEVEL),
    ],
    "A gap request": [(GapRequest(_WEST, "east", 5, ((10, 2), (14, 1))), LEVEL)],
    "Sums": [
        (SumsRequest(_WEST, "east", 5), LEVEL),
        (Sums(_east(14), 71, tuple(TALLY.sums[71:74])), LEVEL),
    ],
    "Progress": [(Progress(_WEST, "east", 5, 14), LEVEL)],
    "A handover": [
        (Handover(_east(14), "west", 6), LEVEL),
        (Handover(_WEST, "east", 5, 258), LEVEL),
        (Handover(_east(14), "west", 6, 258), LEVEL),
    ],
    "A question and its answer": [
        (Question(_east(14), (ENDED, WEB.key)), LEVEL),
        (Answer(_WEST, "east", [WEB], (ENDED,)), LEVEL),
    ],
    "A list of opinions": [
        (
            Opinions(_WEST, 9, part=0, parts=1, checked=3, opinions=_NOT_UP),
            LEVEL,
        )
    ],
    "A configuration": [
        (
            Configuration(
                _WEST,
                _DIGEST,
                part=0,
                parts=1,
                pieces=(("services.web", bytes(range(32, 48))), ("sync", bytes(range(48, 64)))),
            ),
            LEVEL,
        )
    ],
    "Records of level 1": [
        (Changes(_east(9), [WEB._replace(flags=0x120)], [WEB.key]), LEVEL_PLAIN)
    ],
    "A snapshot of level 1": [
        (SnapshotBegin(_east(10)), LEVEL_PLAIN),
        (SnapshotChunk(_east(11), 10, [WEB]), LEVEL_PLAIN),
        (SnapshotEnd(_east(12), 10, 1), LEVEL_PLAIN),
    ],
}
SEALED: Final = Seal([bytes(range(32))], 0x0123456789ABCDEF).seal(
    encode(SnapshotBegin(_east(9)), LEVEL_PLAIN)
)
