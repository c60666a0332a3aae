"""Show what was observed on a terminal: the JSON of `Observation.status` as tables."""

from collections.abc import Mapping
from typing import cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_Json = Mapping[str, object]


def render(status: _Json, interface: str) -> RenderableType:
    """Everything, for one screen."""
    seconds = _number(status, "seconds")
    parts: list[RenderableType] = [Text(f"{interface}, observed for {seconds:.0f} s", style="bold")]
    routers = _list(_table_of(status, "vrrp"), "routers")
    senders = _list(_table_of(status, "sync"), "senders")
    if routers:
        parts += ["", _routers(routers)]
    if senders:
        parts += ["", _senders(senders), "", *_stream(_table_of(status, "sync"))]
    if not routers and not senders:
        parts.append("nothing heard so far")
    findings = cast("list[str]", status["findings"])
    parts += ["", *(Text(f"! {finding}", style="bold yellow") for finding in findings)]
    return Group(*parts)


def _routers(routers: list[_Json]) -> Table:
    table = _new_table(
        "virtual router",
        "speaker",
        "role",
        "version",
        "priority",
        "interval",
        "missed",
        "addresses",
    )
    for router in routers:
        name = f"{router['vrid']} (IPv{router['family']})"
        for speaker in _list(router, "speakers"):
            seen = _number(speaker, "advertisements")
            missed = _number(speaker, "missed")
            _add_row(
                table,
                name,
                str(speaker["address"]),
                "MASTER" if speaker["is_speaking"] else "silent",
                f"{speaker['version']}, {speaker['checksum_over']}",
                str(speaker["priority"]),
                f"{_number(speaker, 'interval_seconds'):g} s",
                f"{missed:.0f} of {seen + missed:.0f}",
                ", ".join(cast("list[str]", speaker["addresses"])),
            )
            name = ""
    return table


def _senders(senders: list[_Json]) -> Table:
    table = _new_table(
        "sync id",
        "sender",
        "version",
        "records",
        "records/s",
        "datagrams/s",
        "heard",
        "longest gap",
    )
    for sender in senders:
        _add_row(
            table,
            str(sender["sync_id"]),
            str(sender["address"]),
            ", ".join(map(str, cast("list[int]", sender["versions"]))),
            str(sender["records"]),
            f"{_number(sender, 'records_per_second'):.1f}",
            f"{_number(sender, 'datagrams_per_second'):.1f}",
            f"{_number(sender, 'heard_seconds_ago'):.1f} s ago"
            + (" (silent)" if sender["is_silent"] else ""),
            f"{_number(sender, 'longest_gap_seconds'):.1f} s",
        )
    return table


def _stream(sync: _Json) -> list[RenderableType]:
    coverage = sync["coverage"]
    counters = _table_of(sync, "counters")
    lines = [
        f"{sync['connections']} connections known: {_counts(sync, 'states')}",
        f"services: {_counts(sync, 'services')}",
        f"records that repeat: {counters.get('records_repeated', 0)}",
        f"connections that moved to another server: {counters.get('connections_moved', 0)}",
    ]
    if isinstance(coverage, float):
        lines.append(f"told before they ended: {coverage:.1%} of the TCP connections that did")
    return [Text(line) for line in lines]


def _counts(mapping: _Json, key: str) -> str:
    return ", ".join(f"{count} {name}" for name, count in _table_of(mapping, key).items()) or "none"


def _new_table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _add_row(table: Table, *cells: str) -> None:
    # rich would take brackets for a style of its own.
    table.add_row(*map(Text, cells))


def _table_of(mapping: _Json, key: str) -> _Json:
    return cast("_Json", mapping[key])


def _list(mapping: _Json, key: str) -> list[_Json]:
    return cast("list[_Json]", mapping[key])


def _number(mapping: _Json, key: str) -> float:
    return float(cast("float", mapping[key]))
