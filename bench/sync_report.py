"""Show a person what the benches of the sync have found.

Of the turns of a join the best counts: what else the machine does can only make a turn worse.
Beside times stands the processor time that was needed, which says more on a machine that is
shared.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.results import Results, spread_of
from bench.sync_results import (
    BYTES_MAX,
    DELAY_MS_MAX,
    JOIN_SECONDS_MAX,
    RATE_MIN,
    Delays,
    SyncBytes,
    SyncForwarding,
    SyncJoin,
    SyncRecords,
)

_KERNEL_BYTES: Final = 36
_INDENT: Final = (0, 0, 0, 4)

Row = tuple[str, str, Text]
"""What, its figure, and whether that is enough."""


def show_sync(results: Results, console: Console) -> None:
    """Print everything of the sync, if there is anything."""
    joins = [list(group) for _, group in groupby(results.sync_joins, lambda j: j.connections)]
    rows = [
        *_bytes_rows(results.sync_bytes),
        *(row for group in joins for row in _join_rows(group)),
        *_records_rows(results.sync_records),
        *map(_forwarding_row, results.sync_forwarding),
    ]
    if not rows:
        return
    table = Table(title="The sync", title_justify="left")
    table.add_column("what")
    for heading in ("figure", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for group in joins:
        _print_lines(console, f"a peer joins {group[0].connections:,} connections:", _joined(group))
    if results.sync_records:
        _print_lines(console, "records, told one by one:", _carried(results.sync_records))
    for forwarding in results.sync_forwarding:
        _print_lines(console, f"{forwarding.name}, with sync and without:", _kept(forwarding))


def _print_lines(console: Console, heading: str, lines: Iterator[str]) -> None:
    console.print(heading)
    for line in lines:
        console.print(Padding(line, _INDENT))


def _verdict(target: str, *, reached: bool) -> Text:
    return Text(f"{target} {'reached' if reached else 'MISSED'}", "green" if reached else "red")


def _bytes_rows(measured: Sequence[SyncBytes]) -> Iterator[Row]:
    for row in measured:
        yield (
            f"bytes of a connection, {row.servers} real servers (the kernel: {_KERNEL_BYTES})",
            f"{row.live:.1f} live, {row.snapshot:.1f} in a snapshot",
            _verdict(f"{BYTES_MAX:.0f}", reached=max(row.live, row.snapshot) <= BYTES_MAX),
        )


def _join_rows(joins: Sequence[SyncJoin]) -> Iterator[Row]:
    connections = joins[0].connections
    usable = spread_of([join.usable for join in joins])
    wanted = JOIN_SECONDS_MAX.get(connections)
    yield (
        f"a peer joins {connections:,} connections",
        f"{usable.least:.2f} s ({usable.median:.2f}, {usable.most:.2f})",
        Text("-") if wanted is None else _verdict(f"{wanted:.0f} s", reached=usable.least < wanted),
    )
    longest = spread_of([join.live.longest_ms for join in joins])
    yield (
        "live changes meanwhile, the longest delay",
        f"{longest.least:.0f} ms ({longest.median:.0f}, {longest.most:.0f})",
        _verdict(f"{DELAY_MS_MAX:.0f} ms", reached=longest.least < DELAY_MS_MAX),
    )
    lost = sum(join.lost for join in joins)
    repaired = sum(join.repaired for join in joins)
    yield (
        "datagrams lost for good, sent again",
        f"{lost}, {repaired}",
        _verdict("0", reached=not lost),
    )


def _records_rows(measured: Sequence[SyncRecords]) -> Iterator[Row]:
    if not measured:
        return
    most = max((row.told for row in measured if row.is_sustained), default=0.0)
    yield (
        "records a second, sustained",
        f"{most:,.0f}",
        _verdict(f"{RATE_MIN:,.0f}", reached=most >= 0.99 * RATE_MIN),
    )


def _forwarding_row(row: SyncForwarding) -> Row:
    ratios = spread_of(row.ratios())
    target = Text("-")
    if row.target is not None:
        target = _verdict(f"{row.target:.2f}", reached=ratios.median >= row.target)
    figure = f"{ratios.median:.2f} ({ratios.least:.2f} to {ratios.most:.2f})"
    return f"{row.name}, of what goes without sync", figure, target


def _joined(joins: Sequence[SyncJoin]) -> Iterator[str]:
    for join in joins:
        yield (
            f"{join.usable:.2f} s; processor: peer {join.own_follower:.2f} s, leader "
            f"{join.own_leader:.2f} s; {join.live.count:,} live changes {_delays(join.live)}; "
            f"longest step: peer {join.blocked_follower * 1e3:.1f} ms, leader "
            f"{join.blocked_leader * 1e3:.1f} ms; sent again {join.repaired}"
        )


def _carried(measured: Sequence[SyncRecords]) -> Iterator[str]:
    for row in measured:
        how = "sustained" if row.is_sustained else "not sustained"
        yield (
            f"{row.wanted:,.0f} a second: {how}; told {row.told:,.0f} in "
            f"{row.datagrams / row.seconds:,.0f} datagrams, {_delays(row.delays)}; processor: "
            f"leader {row.share_leader:.0%}, peer {row.share_follower:.0%}; lost {row.lost}, "
            f"sent again {row.repaired}"
        )


def _kept(row: SyncForwarding) -> Iterator[str]:
    work = spread_of(row.work_ratios())
    for name, rates, shares in (
        ("with", row.with_sync, row.share_with),
        ("without", row.without, row.share_without),
    ):
        rate, share = spread_of(rates), spread_of(shares)
        yield (
            f"{name}: {rate.median:,.0f} a second ({rate.least:,.0f} to {rate.most:,.0f}), on "
            f"{share.median:.0%} of a processor"
        )
    yield f"of what is done in a second of the director's processor time: {work.median:.2f}"
    if row.opened:
        opened = spread_of(row.opened)
        yield f"opened beside: {opened.median:,.0f} a second ({opened.least:,.0f} at least)"
    yield f"connections that failed: {row.failed:,.0f}"


def _delays(delays: Delays) -> str:
    return (
        f"under way for {delays.median_ms:.1f} ms (99 %: {delays.most_of_all_ms:.1f}, "
        f"longest: {delays.longest_ms:.1f})"
    )
