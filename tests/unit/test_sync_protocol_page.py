"""docs/sync-protocol.md says what the code does: its bytes, its sums and its numbers."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from zlib import crc32

import pytest

from lvsha import model
from lvsha.datapath.connections import TEMPLATE_ASSURED
from lvsha.datapath.sctp_states import SctpState
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import BUCKETS, ConnectionFlag
from lvsha.sync.datagrams import decode, encode
from lvsha.sync.messages import Message, MessageType, Numbered, PeerState, Role
from lvsha.sync.pace import Pace
from tests.sync_examples import MESSAGES, SEALED, TALLY, TOLD

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sync-protocol.md").read_text("utf-8")

BEHAVIOUR = (
    "calls",
    "catching_up",
    "configuration",
    "copy",
    "history",
    "opinions",
    "overlap",
    "pace",
    "peers",
    "questions",
    "replica",
    "seal",
    "source",
    "stream",
)
"""Modules of which every public number is in the table."""
# How many names an operator is shown, and an estimate of a room.
NOT_OF_THE_PROTOCOL = {"configuration.NAMES_MAX", "configuration.PART_OVERHEAD_BYTES"}


def part(title: str) -> str:
    """The page below a heading, to the next one."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, without heads."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    heads = {at - 1 for at, cells in enumerate(lines) if cells[0] == "---"}
    return [cells for at, cells in enumerate(lines) if at not in heads and cells[0] != "---"]


def shown(text: str) -> list[bytes]:
    """The datagrams that a text shows: two digits for each byte, indented."""
    blocks = re.findall(r"(?:^ {4,}[0-9a-f]{2}\b.*\n?)+", text, re.MULTILINE)
    return [
        bytes.fromhex("".join(re.findall(r"^ {4,}((?:[0-9a-f]{2} ?)+)", block, re.MULTILINE)))
        for block in blocks
    ]


@pytest.mark.parametrize("title", MESSAGES)
def test_the_bytes_of_the_examples_are_those_of_the_code(title: str) -> None:
    datagrams = [encode(message, level) for message, level in MESSAGES[title]]
    assert [found.hex(" ") for found in shown(part(title))] == [
        datagram.hex(" ") for datagram in datagrams
    ]
    assert [decode(datagram) for datagram in datagrams] == [m for m, _ in MESSAGES[title]]


def test_every_example_is_compared() -> None:
    text = PAGE.partition("\n## Examples\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == list(MESSAGES)


def test_the_sealed_example_is_that_of_the_dissector() -> None:
    assert SEALED in shown(part("An example"))


def test_the_terms_of_sums_are_those_of_the_table() -> None:
    sums = [0] * BUCKETS
    terms = rows(part("Sums"))
    for record, (bucket, told, crc, state, term) in zip(TOLD, terms, strict=True):
        content = bytes.fromhex(told.strip("`"))
        assert content == record.key + record.server + record.server_port.to_bytes(2)
        assert (int(bucket), int(state)) == (model.bucket_of(record.key), record.state)
        assert int(crc, 16) == crc32(content)
        assert int(term, 16) == (crc32(content) + 1) * (2 * record.state + 1)
        sums[int(bucket)] += int(term, 16)
    assert sums == TALLY.sums
    assert f"{TALLY.total:#x}" in part("Sums")


# Names and numbers


def module_of(name: str) -> ModuleType:
    return model if name == "model" else import_module(f"lvsha.sync.{name}")


def value_of(name: str) -> object:
    module, *path = name.split(".")
    if path[0] == "Pace":
        return getattr(Pace(), path[1])
    return getattr(module_of(module), path[0])


def numbers() -> Iterator[tuple[str, str]]:
    for name, value, _ in rows(part("Numbers")):
        if name.startswith("`"):
            yield name.strip("`"), value.replace(",", "")


@pytest.mark.parametrize(("name", "value"), list(numbers()))
def test_a_number_of_the_page_is_that_of_the_code(name: str, value: str) -> None:
    found = value_of(name)
    if isinstance(found, tuple):
        assert tuple(map(float, value.split())) == found
    else:
        assert float(value) == found


def test_every_number_that_decides_on_behaviour_is_in_the_table() -> None:
    described = {name for name, _ in numbers()}
    for name in BEHAVIOUR:
        module = module_of(name)
        source = Path(str(module.__file__)).read_text("utf-8")
        for constant in re.findall(r"^([A-Z][A-Z0-9_]*): Final = ", source, re.MULTILINE):
            full = f"{name}.{constant}"
            if isinstance(getattr(module, constant), int | float):
                assert full in described | NOT_OF_THE_PROTOCOL, full
    for field in Pace.__dataclass_fields__:
        assert f"pace.Pace.{field}" in described


def test_the_types_are_those_of_the_code() -> None:
    table = {int(row[0]): row for row in rows(part("Messages")) if row[0].isdigit()}
    assert set(table) == set(MessageType)
    kinds: dict[int, Message] = {}
    for messages in MESSAGES.values():
        for message, level in messages:
            kinds[encode(message, level)[5 if encode(message, level)[4] != 0xDC else 7]] = message
    assert set(kinds) == set(MessageType) - {MessageType.SEALED}
    for kind, message in kinds.items():
        assert table[kind][3] == ("yes" if isinstance(message, Numbered) else "no"), kind


def test_states_flags_and_roles_are_those_of_the_code() -> None:
    table = {row[0]: row[1].partition(":")[0].split(", ") for row in rows(part("States and flags"))}
    assert table["TCP"] == [state.name for state in TcpState]
    assert table["SCTP"] == [state.name for state in SctpState]
    assert table["any, of a template"][TEMPLATE_ASSURED] == "ASSURED"
    flags = {row[1]: int(row[0], 16) for row in rows(part("States and flags")) if "0x" in row[0]}
    assert flags == {str(flag.name): flag.value for flag in ConnectionFlag}
    assert ", ".join(role.name for role in Role) in part("A datagram")
    assert ", ".join(state.name for state in PeerState) in part("Heartbeat")
