"""The Wireshark dissector shows what the decoder reads, and refuses what it refuses."""

import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from pathlib import Path

import msgpack
import pytest

from lvsha.capture import LinkType, PcapWriter
from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.tcp_states import TcpState
from lvsha.errors import SyncError
from lvsha.model import (
    TEMPLATE_BIT,
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    IPv4_BYTES,
    Protocol,
    bucket_of,
    format_address,
)
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.ipvs import messages as kernel
from lvsha.sync.messages import (
    LEVEL,
    Answer,
    Changes,
    Configuration,
    GapRequest,
    Handover,
    Heartbeat,
    Message,
    Opinions,
    Progress,
    Question,
    SnapshotBegin,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    Sums,
    SumsRequest,
)
from tests.sync_examples import CALL, FTP, MESSAGES, SEALED, TOLD, WEB, WEB6

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "lvsha-sync.lua"
PORT = 8848
MUTATIONS = 600

_TSHARK = shutil.which("tshark")
pytestmark = pytest.mark.skipif(_TSHARK is None, reason="tshark is not installed")

Fields = dict[str, list[str]]


def carried(datagram: bytes, port: int = PORT) -> bytes:
    """A datagram in a packet of IPv4, as a capture of raw IP has it."""
    udp = struct.pack("!HHHH", port, port, 8 + len(datagram), 0) + datagram
    ends = bytes((10, 0, 0, 1, 224, 0, 0, 81))
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 1, 17, 0) + ends + udp


def dissected(
    folder: Path, datagrams: Iterable[bytes], names: Sequence[str], port: int = PORT
) -> list[Fields]:
    """What tshark shows of each datagram: all values of these fields, in order."""
    path = folder / "sync.pcap"
    with path.open("wb") as stream:
        writer = PcapWriter(stream, LinkType.RAW, exact=True)
        for number, datagram in enumerate(datagrams):
            writer.write(number * 10**9, carried(datagram, port))
    assert _TSHARK is not None
    command = [_TSHARK, "-X", f"lua_script:{SCRIPT}", "-r", str(path), "-T", "fields"]
    command += ["-E", "occurrence=a", "-E", "aggregator=|", "-E", "separator=/t"]
    for name in names:
        command += ["-e", name]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "Lua" not in finished.stderr, finished.stderr
    return [
        {
            name: text.split("|") if text else []
            for name, text in zip(names, line.split("\t"), strict=True)
        }
        for line in finished.stdout.splitlines()
    ]


# What a message must be shown as


Value = int | float | str | bytes
Expected = dict[str, list[Value]]


def read(text: str, like: Value) -> Value:
    """A value that tshark shows, of the type that is expected."""
    if isinstance(like, int):
        return int(text == "True") if text in {"True", "False"} else int(text, 0)
    if isinstance(like, float):
        return float(text)
    return bytes.fromhex(text) if isinstance(like, bytes) else text


def key_fields(key: bytes) -> Expected:
    size = 4 if key[0] & ~TEMPLATE_BIT == 4 else 16
    wide = "" if size == IPv4_BYTES else "6"
    is_template = key[0] >= TEMPLATE_BIT
    expected: Expected = {
        "key.family": [key[0] & ~TEMPLATE_BIT],
        "key.template": [int(is_template)],
        "key.protocol": [key[1]],
        f"key.client{wide}": [format_address(key[2 : 2 + size])],
        f"key.virtual{wide}": [format_address(key[2 + size : 2 + 2 * size])],
        "key.client_port": [int.from_bytes(key[2 + 2 * size : 4 + 2 * size])],
        "key.virtual_port": [int.from_bytes(key[4 + 2 * size : 6 + 2 * size])],
        "key.found": [key[6 + 2 * size :].decode()] if key[6 + 2 * size :] else [],
    }
    return expected if is_template else expected | {"bucket": [bucket_of(key)]}


def record_fields(record: ConnectionRecord) -> Expected:
    wide = "" if len(record.server) == IPv4_BYTES else "6"
    details = record.details or ConnectionDetails()
    expected: Expected = {
        **key_fields(record.key),
        f"server{wide}": [format_address(record.server)],
        "server_port": [record.server_port],
        "method": [record.method.value],
        "connection.state": [record.state],
        "flags": [record.flags],
        "timeout": [float(record.timeout)],
        "mark": [details.mark] if details.mark else [],
        "engine": [details.engine] if details.engine else [],
        "parent": [details.parent] if details.parent else [],
        "dialogue.mode": list(details.dialogue[:1]),
        "dialogue.answered": list(details.dialogue[1:2]),
        "dialogue.answered_mode": list(details.dialogue[2:]),
    }
    for flag in ConnectionFlag:
        expected[f"flags.{flag.name.lower() if flag.name else ''}"] = [
            int(bool(record.flags & flag))
        ]
    return expected | {
        f"shift.{name}": [value] for name, value in zip(SHIFTS, details.shifts, strict=False)
    }


SHIFTS = [f"{way}.{part}" for way in ("in", "out") for part in ("init", "delta", "previous_delta")]


def together(parts: Iterable[Expected]) -> Expected:
    """Values of the same field behind each other."""
    gathered: Expected = {}
    for part in parts:
        for name, values in part.items():
            gathered.setdefault(name, []).extend(values)
    return gathered


def heartbeat_fields(message: Heartbeat) -> Expected:
    standing = message.standing
    return {
        "connections": [message.connections],
        "digest": [message.digest],
        "leader": [message.leader] if message.leader else [],
        "state": [message.state.value],
        "position": [message.position],
        "complete": [int(message.complete)],
        "level": [message.level],
        "speaks": [message.speaks],
        "oldest": [message.oldest],
        "heard": list(message.heard),
        "standing.told": [standing.told],
        "standing.total": [standing.total],
        "standing.current": [int(standing.is_current)],
        "standing.established": [standing.established],
        "standing.exposed": [standing.exposed],
        "standing.missing": [standing.missing],
        "standing.wanted": [standing.wanted],
        "standing.mismatched": [standing.mismatched],
        "standing.lost": [standing.lost],
        "standing.repaired": [standing.repaired],
        "duty.state": [] if message.duty is None else [message.duty.state.value],
        "duty.witness": [] if message.duty is None else [message.duty.witness.value],
        "duty.priority": [] if message.duty is None else [message.duty.priority],
    }


def addressed_fields(message: SnapshotRequest | GapRequest | SumsRequest | Progress) -> Expected:
    return {"leader": [message.leader], "leader_epoch": [message.leader_epoch]}


def members(buckets: int) -> list[Value]:
    return [bucket for bucket in range(buckets.bit_length()) if buckets >> bucket & 1]


def fields_of(message: Message, level: int) -> Expected:
    """What is special to a message."""
    match message:
        case Heartbeat():
            return heartbeat_fields(message)
        case Changes():
            told = [record_fields(record) for record in message.records]
            return together([*told, *map(key_fields, message.ended)])
        case SnapshotRequest():
            own: Expected = {"position": [message.position], "bucket": members(message.buckets)}
            return addressed_fields(message) | own
        case SnapshotBegin():
            return {"bucket": members(message.buckets)} if level == LEVEL else {}
        case SnapshotChunk():
            return together([{"begin": [message.begin]}, *map(record_fields, message.records)])
        case SnapshotEnd():
            return {"begin": [message.begin], "count": [message.records]}
        case Configuration():
            return {
                "digest": [message.digest],
                "part": [message.part],
                "parts": [message.parts],
                "piece": [name for name, _ in message.pieces],
                "piece.digest": [digest for _, digest in message.pieces],
            }
        case GapRequest():
            return addressed_fields(message) | {
                "range.first": [first for first, _ in message.ranges],
                "range.count": [count for _, count in message.ranges],
            }
        case SumsRequest():
            return addressed_fields(message)
        case Sums():
            return {
                "first": [message.first],
                "sum": list(message.sums),
                "sums.current": [int(message.is_current)],
            }
        case Progress():
            return addressed_fields(message) | {"position": [message.position]}
        case Handover():
            return {
                "node": [message.node],
                "node_epoch": [message.node_epoch],
                "moment": [message.moment],
            }
        case Opinions():
            return {
                "opinions.list": [message.number],
                "part": [message.part],
                "parts": [message.parts],
                "opinions.checked": [message.checked],
                "opinions.service": [service for service, *_ in message.opinions],
                "server": [format_address(address) for _, address, *_ in message.opinions],
                "server_port": [port for _, _, port, _ in message.opinions],
                "opinions.opinion": [opinion for *_, opinion in message.opinions],
            }
        case Question():
            return together([{"key": list(message.keys)}, *map(key_fields, message.keys)])
        case Answer():
            known = map(record_fields, message.records)
            keys: Expected = {"asker": [message.asker], "key": list(message.unknown)}
            return together([keys, *known, *map(key_fields, message.unknown)])
        case _:
            raise AssertionError(message)


def origin_fields(message: Message) -> Expected:
    origin = message.origin
    return {
        "sync_id": [origin.sync_id],
        "node": [origin.node],
        "epoch": [origin.epoch],
        "role": [origin.role.value],
        "term": [origin.term],
        "sequence": [origin.sequence],
        "malformed": [],
        "more": [],
    }


# Tests


FULL = WEB6._replace(
    state=3,
    timeout=0.25,
    details=ConnectionDetails(
        shifts=(1, 2, 3, 4, 5, 2**32 - 1),
        parent=FTP.key,
        dialogue=(3, 2**32 - 1, 1),
    ),
)
BEGUN = FTP._replace(details=ConnectionDetails(dialogue=(3,)))
MARKED = CALL._replace(details=ConnectionDetails(mark=0xFFFF_FFFF, engine="sip"))
SAMPLES: list[tuple[Message, int]] = [
    *(sample for samples in MESSAGES.values() for sample in samples),
    (Changes(MESSAGES["Changes"][0][0].origin, [FULL, MARKED, BEGUN], []), LEVEL),
    (Sums(MESSAGES["Sums"][1][0].origin, 510, (2**64 - 1,), is_current=False), LEVEL),
]
EXTREME = 2**64 - 1


def test_every_message_is_shown_with_all_its_fields(tmp_path: Path) -> None:
    expected = [
        together([origin_fields(message), fields_of(message, level)]) for message, level in SAMPLES
    ]
    names = sorted({name for fields in expected for name in fields})
    datagrams = [encode(message, level) for message, level in SAMPLES]
    shown = dissected(tmp_path, datagrams, [f"lvsha.{name}" for name in names])
    for (message, _), fields, found in zip(SAMPLES, expected, shown, strict=True):
        for name in names:
            values = fields.get(name, [])
            texts = found[f"lvsha.{name}"]
            if name == "key" and not isinstance(message, Question | Answer):
                continue  # of groups there is none, of level 1 one for each entry
            assert len(texts) == len(values), (message, name, texts)
            read_ = [read(text, like) for text, like in zip(texts, values, strict=True)]
            assert read_ == values, (message, name)


def test_numbers_of_64_bits_are_shown_whole(tmp_path: Path) -> None:
    progress = MESSAGES["Progress"][0][0]
    assert isinstance(progress, Progress)
    largest = Progress(progress.origin, "east", EXTREME, EXTREME)
    names = ["lvsha.leader_epoch", "lvsha.position"]
    assert dissected(tmp_path, [encode(largest)], names) == [
        {name: [str(EXTREME)] for name in names}
    ]


def test_a_sealed_datagram_is_shown_as_sealed(tmp_path: Path) -> None:
    names = ["version", "sync_id", "sealed.key_id", "sealed.session", "sealed.counter", "type"]
    (shown,) = dissected(tmp_path, [SEALED], [f"lvsha.{name}" for name in names])
    assert [values[0] if values else None for values in shown.values()] == [
        "2",
        "1",
        "0x37",
        "0x0123456789abcdef",
        "1",
        None,
    ]


def is_refused(datagram: bytes) -> bool:
    try:
        decode(datagram)
    except SyncError:
        return True
    return False


def cut(datagram: bytes, _: random.Random, at: int) -> bytes:
    return datagram[:at]


def lengthen(datagram: bytes, dice: random.Random, _: int) -> bytes:
    return datagram + dice.randbytes(1)


def change_byte(datagram: bytes, dice: random.Random, at: int) -> bytes:
    return datagram[:at] + dice.randbytes(1) + datagram[at + 1 :]


def leave_out(datagram: bytes, _: random.Random, at: int) -> bytes:
    return datagram[:at] + datagram[at + 1 :]


def put_in(datagram: bytes, dice: random.Random, at: int) -> bytes:
    return datagram[:at] + dice.randbytes(1) + datagram[at:]


def mutants() -> list[bytes]:
    """Datagrams that were damaged, always the same ones."""
    dice = random.Random(4)
    whole = [encode(message, level) for message, level in SAMPLES]
    ways: list[Callable[[bytes, random.Random, int], bytes]] = [
        cut,
        lengthen,
        change_byte,
        change_byte,
        leave_out,
        put_in,
    ]
    damaged = []
    for _ in range(MUTATIONS):
        datagram = dice.choice(whole)
        at = dice.randrange(5, len(datagram))
        damaged.append(dice.choice(ways)(datagram, dice, at))
    return damaged


def test_what_the_decoder_refuses_is_marked_and_nothing_else(tmp_path: Path) -> None:
    datagrams = mutants()
    shown = dissected(tmp_path, datagrams, ["lvsha.malformed"])
    refused = [is_refused(datagram) for datagram in datagrams]
    assert MUTATIONS // 4 < sum(refused) < MUTATIONS
    for datagram, expected, fields in zip(datagrams, refused, shown, strict=True):
        assert bool(fields["lvsha.malformed"]) == expected, datagram.hex(" ")


ENDS = bytes.fromhex("0406000050 1f90 c0000201 0a000005")
TEMPLATE_ENDS = b"\x84" + ENDS[1:]
TUNNEL_ENDS = ENDS[:2] + b"\x02" + ENDS[3:11] + bytes(16)
ENTRY = bytes.fromhex("c6336407 9c40 01 0000 00015f90")


def body(kind: int, *fields: object) -> bytes:
    packed: bytes = msgpack.packb([kind, "east", 5, 1, 2, 9, *fields])
    return b"\x01\x01\xff\xff" + packed


def group(*details: object, ends: bytes = ENDS, entries: bytes = ENTRY) -> bytes:
    return body(12, [[ends, entries, *([list(details)] if details else [])]], [], [])


def asked(kind: int, *fields: object) -> bytes:
    return body(kind, "east", 5, *fields)


# Both sides of every limit.
LIMITS: dict[str, bytes] = {
    "24 fields": group([0, *(x for n in range(24) for x in (100 + n, b"x"))]),
    "25 fields": group([0, *(x for n in range(25) for x in (100 + n, b"x"))]),
    "300 bytes of details": group([0, 100, bytes(255), 101, bytes(35)]),
    "301 bytes of details": group([0, 100, bytes(255), 101, bytes(36)]),
    "field of 295 bytes": group([0, 100, bytes(295)]),
    "field of 296 bytes": group([0, 100, bytes(296)]),
    "empty field": group([0, 100, b""]),
    "field 0": group([0, 0, b"x"]),
    "field 65,535": group([0, 65_535, b"x"]),
    "field 65,536": group([0, 65_536, b"x"]),
    "details of entry 1 of 1": group([1, 100, b"x"]),
    "details twice": group([0, 100, b"x"], [0, 101, b"x"]),
    "a field without a value": group([0, 100]),
    "found, of a template": group([0, 3, b"call"], ends=TEMPLATE_ENDS),
    "found, of no template": group([0, 3, b"call"]),
    "found, of 255 bytes": group([0, 3, bytes(255)], ends=TEMPLATE_ENDS),
    "found, of 256 bytes": group([0, 3, bytes(256)], ends=TEMPLATE_ENDS),
    "parent with a Call-ID of 255": group([0, 5, CALL.key[:14] + bytes(255)]),
    "parent with a Call-ID of 256": group([0, 5, CALL.key[:14] + bytes(256)]),
    "dialogue of 1 byte": group([0, 6, b"\x03"]),
    "dialogue of 2 bytes": group([0, 6, b"\x03\x00"]),
    "dialogue of 5 bytes": group([0, 6, bytes(5)]),
    "dialogue of 6 bytes": group([0, 6, bytes(6)]),
    "dialogue of 7 bytes": group([0, 6, bytes(7)]),
    "field 7": group([0, 7, bytes(2)]),
    "engine of 16": group([0, 4, b"s" * 16]),
    "engine of 17": group([0, 4, b"s" * 17]),
    "engine with a blank": group([0, 4, b"s p"]),
    "mark of 3 bytes": group([0, 1, b"abc"]),
    "shifts of 23 bytes": group([0, 2, bytes(23)]),
    "parent": group([0, 5, WEB.key]),
    "parent that is no key": group([0, 5, WEB.key[1:]]),
    "parent with a Call-ID that is no template": group([0, 5, WEB.key + b"call"]),
    "server of the other family by a tunnel": group(ends=TUNNEL_ENDS),
    "server of the other family by NAT": group(ends=ENDS[:11] + bytes(16)),
    "server of 5 bytes by a tunnel": group(ends=TUNNEL_ENDS[:16]),
    "method 1": group(ends=ENDS[:2] + b"\x01" + ENDS[3:]),
    "method 4": group(ends=ENDS[:2] + b"\x04" + ENDS[3:]),
    "method 5": group(ends=ENDS[:2] + b"\x05" + ENDS[3:]),
    "family 5": group(ends=b"\x05" + ENDS[1:]),
    "entries cut": group(entries=ENTRY[:-1]),
    "no entries": group(entries=b""),
    "a group of one element": body(12, [[ENDS]], [], []),
    "20 ranges": asked(8, [[1, 1]] * 20),
    "21 ranges": asked(8, [[1, 1]] * 21),
    "a count of 33 bits": asked(8, [[1, 2**32]]),
    "32 keys": body(18, [WEB.key] * 32),
    "33 keys": body(18, [WEB.key] * 33),
    "key with 255 bytes behind it": body(18, [CALL.key[:14] + bytes(255)]),
    "key with 256 bytes behind it": body(18, [CALL.key[:14] + bytes(256)]),
    "128 sums": body(9, 383, bytes(8 * 128)),
    "129 sums": body(9, 0, bytes(8 * 129)),
    "sums beyond the last bucket": body(9, 384, bytes(8 * 128)),
    "no sums": body(9, 0, b""),
    "sums that do not say whether they are current": body(9, 0, bytes(8)),
    "sums that are not current": body(9, 0, bytes(8), False),
    "sums that are current by a number": body(9, 0, bytes(8), 1),
    "buckets of 63 bytes": body(13, bytes(63)),
    "no buckets": body(13, bytes(64)),
    "the last part": body(7, bytes(16), 4095, 4096, []),
    "too many parts": body(7, bytes(16), 0, 4097, []),
    "part 1 of 1": body(7, bytes(16), 1, 1, []),
    "a piece's name of 128": body(7, bytes(16), 0, 1, [["n" * 128, b"x"]]),
    "a piece's digest of 33": body(7, bytes(16), 0, 1, [["n", bytes(33)]]),
    "role 4": body(4).replace(b"\x05\x01\x02\x09", b"\x05\x04\x02\x09"),
    "an end in a snapshot of level 1": body(5, 9, [WEB.key]),
    "a string of 256": body(4, "n" * 256),
    "a string that is no UTF-8": body(4)[:4] + b"\x97" + body(4)[5:] + b"\xa1\xff",
    "a float where a number belongs": body(6, 1.0, 1),
    "a boolean where a number belongs": body(6, True, 1),
    "4,097 elements": body(4, [1] * 4097),
    "a map": body(4, {1: 1}),
    "nil behind the rest": body(4, None),
}


def test_limits_are_those_of_the_decoder(tmp_path: Path) -> None:
    shown = dissected(tmp_path, LIMITS.values(), ["lvsha.malformed"])
    found = {
        title: bool(fields["lvsha.malformed"]) for title, fields in zip(LIMITS, shown, strict=True)
    }
    assert found == {title: is_refused(datagram) for title, datagram in LIMITS.items()}
    assert len(LIMITS) // 4 < sum(found.values()) < len(LIMITS)


def test_elements_of_a_later_version_are_shown_and_an_unknown_type_is_noted(
    tmp_path: Path,
) -> None:
    # The last message with one element more, and type 200.
    progress = encode(MESSAGES["Progress"][0][0])
    assert progress[4] == 0x99
    longer = progress[:4] + b"\x9a" + progress[5:] + b"\x07"
    unknown = progress[:5] + b"\xcc\xc8" + progress[6:]
    names = ["lvsha.more", "lvsha.unknown_type", "lvsha.malformed", "lvsha.node"]
    shown = dissected(tmp_path, [longer, unknown], names)
    assert [[bool(values) for values in fields.values()] for fields in shown] == [
        [True, False, False, True],
        [False, True, False, True],
    ]


def test_on_other_ports_the_head_tells(tmp_path: Path) -> None:
    web = encode(MESSAGES["Changes"][0][0])
    shown = dissected(
        tmp_path, [web, SEALED, b"\x01\x01\x00\x2c" + web[4:]], ["lvsha.sync_id"], 4000
    )
    assert [fields["lvsha.sync_id"] for fields in shown] == [["1"], ["1"], []]


@pytest.mark.parametrize("version", [0, 1])
def test_the_kernels_datagrams_are_shown(tmp_path: Path, version: int) -> None:
    records = [record for record in (*TOLD, WEB6) if kernel.can_carry(version, record)]
    encoded = [kernel.emit_record(version, record) for record in records]
    datagram = kernel.emit_message(version, 21, encoded)
    names = [
        *("version", "sync_id", "count", "client", "client6", "client_port", "virtual_port"),
        *("server", "server_port", "method", "state", "engine", "malformed"),
    ]
    (shown,) = dissected(tmp_path, [datagram], [f"ipvs_sync.{name}" for name in names])
    found = {name.partition(".")[2]: values for name, values in shown.items()}
    assert found["malformed"] == []
    assert [*found["version"], *found["sync_id"], *found["count"]] == [
        str(version),
        "21",
        str(len(records)),
    ]
    of_four = [record for record in records if len(record.server) == IPv4_BYTES]
    assert found["client"] == [format_address(record.key[2:6]) for record in of_four]
    assert found["server"] == [format_address(record.server) for record in of_four]
    assert len(found["client6"]) == len(records) - len(of_four)
    assert found["server_port"] == [str(record.server_port) for record in records]
    assert found["method"] == [str(record.method.value) for record in records]
    assert found["state"] == [str(record.state) for record in records]
    if version:
        assert found["engine"] == ["sip"]
    assert WEB in records


def test_a_kernels_datagram_that_is_cut_is_marked(tmp_path: Path) -> None:
    whole = kernel.emit_message(1, 21, [kernel.emit_record(1, record) for record in TOLD])
    datagrams = [whole[:length] for length in range(4, len(whole), 7)]
    shown = dissected(tmp_path, datagrams, ["ipvs_sync.malformed"])
    assert all(fields["ipvs_sync.malformed"] for fields in shown)


def test_states_are_named(tmp_path: Path) -> None:
    states: list[tuple[int, IntEnum]] = [
        *((Protocol.TCP, state) for state in TcpState),
        *((Protocol.SCTP, state) for state in SctpState),
    ]
    records = [
        WEB._replace(key=WEB.key[:1] + bytes((protocol,)) + WEB.key[2:], state=state.value)
        for protocol, state in states
    ]
    datagram = encode(Changes(MESSAGES["Changes"][0][0].origin, records, []))
    (shown,) = dissected(tmp_path, [datagram], ["lvsha.connection.state_name"])
    assert shown["lvsha.connection.state_name"] == [state.name for _, state in states]
