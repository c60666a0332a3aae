"""The second path in a pair file: what is read, and what is refused and how."""

import re

import pytest

from lvsha.config import Pair, parse_pair
from lvsha.errors import ConfigError

BASE = """
[[virtual_routers]]
name = "web"
vrid = 51
interface = "outside"
addresses = ["192.0.2.10/24"]

[[trackers]]
name = "gw"
kind = "gateway"
address = "192.0.2.254"
interface = "outside"

[[trackers]]
name = "load"
kind = "file"
path = "/run/load"

[nodes.east]
priority = 150
interfaces = { outside = "eth0", sync = "eth1" }

[nodes.west]
interfaces = { outside = "eth0", sync = "eth1" }
"""
SYNC = "[sync]\n"


def parse(*parts: str) -> Pair:
    return parse_pair("\n".join((BASE, *parts)), "pair.toml")


def section(*lines: str) -> str:
    return "\n".join(("[second_path]", *lines))


def test_without_the_section_there_is_none() -> None:
    assert parse(SYNC).second_path is None


def test_an_empty_section_asks_the_sync_link_alone() -> None:
    table = parse(SYNC, section()).second_path
    assert table is not None
    assert (table.witness, table.master_heard, table.fencing) == (None, "stay", None)


def test_all_keys_are_read() -> None:
    fencing = (
        '{ command = ["/bin/fence", "-x"], user = "nobody", timeout = 5, on_failure = "stay" }'
    )
    table = parse(
        SYNC, section('witness = "gw"', 'master_heard = "take_over"', f"fencing = {fencing}")
    ).second_path
    assert table is not None
    assert (table.witness, table.master_heard) == ("gw", "take_over")
    assert table.fencing is not None
    assert table.fencing.command == ("/bin/fence", "-x")
    assert (table.fencing.user, table.fencing.timeout) == ("nobody", 5.0)
    assert table.fencing.on_failure == "stay"


def test_a_witness_and_fencing_need_no_sync() -> None:
    assert parse(section('witness = "gw"')).second_path is not None
    assert parse(section('fencing = { command = "/bin/fence" }')).second_path is not None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((SYNC, section('witness = "gateway"')), r"second_path\.witness: .*not 'gateway'"),
        ((SYNC, section('witness = "load"')), r"second_path\.witness: .*'load' reports a number"),
        ((section(),), r"second_path: expected a \[sync\] .*nobody to ask"),
        (('[sync]\nformat = "ipvs"', section()), r"second_path: expected a \[sync\]"),
        (
            (section('witness = "gw"', 'master_heard = "stay"'),),
            r"second_path\.master_heard: expected only with a \[sync\]",
        ),
        ((SYNC, section('master_heard = "wait"')), r"second_path\.master_heard: expected .*stay"),
        ((SYNC, section("fencing = {}")), r"second_path\.fencing\.command: missing"),
        (
            (SYNC, section('fencing = { command = "fence" }')),
            r"second_path\.fencing\.command: expected a program by its whole path",
        ),
        (
            (SYNC, section('fencing = { command = "/f", timeout = 0 }')),
            r"second_path\.fencing\.timeout: expected .*0\.1",
        ),
        ((SYNC, section("other = 1")), r"second_path\.other: unknown key"),
    ],
)
def test_a_mistake_is_named(parts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*parts)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert re.match(rf"pair\.toml: {message}", lines[0]), lines
