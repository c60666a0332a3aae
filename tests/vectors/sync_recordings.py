"""Recordings of the sync protocol as versions spoke it, and how they are read.

A file has one datagram or step a line: ``datagrams`` with their bytes and what they mean,
and in that of 0.1.0, which is a whole conversation, ``steps``: what happened at each node,
in order, with the numbers of the datagrams that came and left. That of level 2 has each
datagram once more as a later version may lengthen it, and sealed.

A recording is made once, by the version itself. While a level is not released, ``python -m
tests.vectors.sync_recordings`` writes its recording anew; after that it is never changed.

Bytes are written in hexadecimal, times are seconds of the conversation.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgpack

from lvsha.model import (
    ConnectionDetails,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    parse_address,
    template_key,
)
from lvsha.runs import Runs
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.messages import (
    ALL_BUCKETS,
    Answer,
    Changes,
    Configuration,
    GapRequest,
    Heartbeat,
    Message,
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

HERE: Final = Path(__file__).parent
Meaning = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """One conversation.

    Attributes:
        datagrams: the bytes of each.
        meanings: what each means.
        lines: these two and whatever else a line of the file has.
        steps: what happened; see `tests.vectors.test_sync_recordings`.
        rest: everything else, by name.
    """

    datagrams: list[bytes]
    meanings: list[Meaning]
    lines: list[Meaning]
    steps: list[Meaning]
    rest: Mapping[str, Any]


def load(name: str) -> Recording:
    """The recording with this name."""
    rest = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    datagrams = rest.pop("datagrams")
    return Recording(
        [bytes.fromhex(datagram["bytes"]) for datagram in datagrams],
        [datagram["meaning"] for datagram in datagrams],
        datagrams,
        rest.pop("steps", []),
        rest,
    )


def record_of(values: list[Any]) -> ConnectionRecord:
    """A connection from a recording."""
    key, server, port, method, state, flags, timeout, *details = values
    return ConnectionRecord(
        bytes.fromhex(key),
        bytes.fromhex(server),
        port,
        ForwardMethod(method),
        state,
        flags,
        timeout,
        _details_of(details[0]) if details else None,
    )


def _details_of(values: Meaning) -> ConnectionDetails:
    return ConnectionDetails(
        mark=values["mark"],
        shifts=tuple(values["shifts"]),
        engine=values["engine"],
        parent=bytes.fromhex(values["parent"]),
        dialogue=tuple(values["dialogue"]),
        others=tuple((number, bytes.fromhex(value)) for number, value in values["others"]),
    )


def meaning(message: Message) -> Meaning:
    """What a message means, as JSON: the fields of its sender and its own, by name."""
    values = {f.name: getattr(message, f.name) for f in fields(message) if f.name != "origin"}
    if "records" in values and isinstance(values["records"], int):
        values["count"] = values.pop("records")
    if values.get("duty", ...) is None:
        # Who does not say it says what nodes said before there was one.
        del values["duty"]
    said = {"message": type(message).__name__}
    origin = {f.name: getattr(message.origin, f.name) for f in fields(message.origin)}
    return {name: plain(value) for name, value in (said | origin | values).items()}


def plain(value: object) -> Any:
    """A value as JSON has it."""
    match value:
        case ConnectionRecord():
            *simple, details = value
            return [*map(plain, simple), *([] if details is None else [plain(details)])]
        case bytes():
            return value.hex()
        case Enum() if not isinstance(value, ForwardMethod):
            return value.name
        case bool() | int() | float() | str():
            return value
        case list() | tuple() | Runs():
            return [plain(inner) for inner in value]
        case _:
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]


# --- making the recording of level 2 ----------------------------------------------------------

LEVEL_2: Final = "sync-level-2"
_KEY: Final = bytes(range(32))
_SESSION: Final = 0x0102030405060708


def _messages() -> list[Message]:
    """Each message of level 2, with all that can stand in it."""
    origin = Origin(51, "east", 0x1122334455667788, Role.LEAD, 3, 70_000)
    follower = Origin(51, "west", 0x99AABBCCDDEEFF00, Role.FOLLOW, 2, 12)
    v4 = connection_key(6, parse_address("198.51.100.7"), 40_000, parse_address("192.0.2.1"), 80)
    v6 = connection_key(17, parse_address("2001:db8:1::7"), 5000, parse_address("2001:db8::1"), 53)
    plain_v4 = ConnectionRecord(v4, bytes((10, 1, 0, 1)), 8080, ForwardMethod.NAT, 1, 0x100, 900.0)
    plain_v6 = ConnectionRecord(
        v6, parse_address("fd00:5::b"), 53, ForwardMethod.DIRECT_ROUTE, 0, 0, 300.25
    )
    call = plain_v6._replace(
        key=template_key(v6, b"call@there"),
        flags=0x1000,
        details=ConnectionDetails(mark=7, engine="sip"),
    )
    control = plain_v4._replace(
        method=ForwardMethod.TUNNEL,
        server=parse_address("fd00:5::c"),
        flags=0x700,
        details=ConnectionDetails(
            shifts=(1, 2, 2**32 - 1, 4, 5, 6), parent=v6, dialogue=(1, 2**32 - 1, 2)
        ),
    )
    later = plain_v4._replace(
        details=ConnectionDetails(mark=1, others=((77, b"later"), (40_000, b"\0")))
    )
    mark = plain_v4._replace(key=template_key(b"\x04\0" + v4[2:6] + b"\0\0\0\x07" + bytes(4)))
    standing = Standing(9, 2**64 - 1, True, 8, 7, 6, 5, 4, 3, 2)
    return [
        Heartbeat(
            origin,
            *(12, bytes(range(16)), "", PeerState.PROBE, 0, True),
            level=2,
            speaks=2,
            oldest=60_000,
            heard=(follower.epoch, 2**64 - 1),
            standing=standing,
        ),
        Heartbeat(
            follower,
            *(11, bytes(16), "east", PeerState.SNAPSHOT, 69_990, False),
            level=2,
            speaks=1,
            oldest=13,
        ),
        Changes(origin, [plain_v4, plain_v6, call, control, later, mark], []),
        Changes(origin, [], [v4, v6, call.key, mark.key]),
        Changes(origin, [plain_v4._replace(state=n) for n in range(20)], [v4] * 3),
        SnapshotRequest(follower, "east", origin.epoch, 69_990, 1 << 510 | 1 << 7 | 1),
        SnapshotBegin(origin, ALL_BUCKETS),
        SnapshotChunk(origin, 69_999, [plain_v4, plain_v6, call]),
        SnapshotEnd(origin, 69_999, 4711),
        Configuration(origin, bytes(range(16)), 1, 3, (("services.web", b"2" * 16), ("s", b"1"))),
        GapRequest(follower, "east", origin.epoch, ((69_991, 2), (69_995, 1))),
        SumsRequest(follower, "east", origin.epoch),
        Sums(origin, 384, tuple(2**64 - 1 - n for n in range(127))),
        Progress(follower, "east", origin.epoch, 69_998),
        Question(origin, (v4, v6, call.key)),
        Answer(follower, "east", [later, call], (v6, mark.key)),
    ]


def _lengthened(datagram: bytes) -> bytes:
    """A datagram as a later version may say it: with more elements at the end."""
    elements = msgpack.unpackb(datagram[4:])
    return datagram[:4] + bytes(msgpack.packb([*elements, "later", 1, [b"later"]]))


def make_level_2() -> str:
    """The recording of level 2."""
    seal = Seal([_KEY], _SESSION)
    lines = []
    for message in _messages():
        datagram = encode(message)
        entry = {
            "bytes": datagram.hex(),
            "lengthened": _lengthened(datagram).hex(),
            "sealed": seal.seal(datagram).hex(),
            "meaning": meaning(decode(datagram)),
        }
        lines.append("  " + json.dumps(entry))
    head = json.dumps({"level": 2, "key": _KEY.hex(), "session": _SESSION}, indent=1)
    return head[:-2] + ',\n "datagrams": [\n' + ",\n".join(lines) + "\n ]\n}\n"


if __name__ == "__main__":
    (HERE / f"{LEVEL_2}.json").write_text(make_level_2(), encoding="utf-8")
    sys.stdout.write(f"{LEVEL_2} written\n")
