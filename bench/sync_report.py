"""Show a person what the benches of the sync have found.

The best of some turns is what counts against a target: what else the machine does can only
make a turn worse. Beside times stands the processor time that was needed, which says more on
a machine that is shared.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.results import Results, spread_of
from bench.sync_results import (
    BYTES_MAX,
    DELAY_MS_MAX,
    JOIN_SECONDS_MAX,
    RATE_MIN,
    SyncBytes,
    SyncForwarding,
    SyncJoin,
    SyncRecords,
)

_KERNEL_BYTES: Final = 36


def show_sync(results: Results, console: Console) -> None:
    """Print everything of the sync."""
    if results.sync_bytes:
        console.print(_bytes_table(results.sync_bytes))
    if results.sync_joins:
        console.print(_join_table(results.sync_joins))
    if results.sync_records:
        console.print(_records_table(results.sync_records))
    if results.sync_forwarding:
        console.print(_forwarding_table(results.sync_forwarding))


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _verdict(text: str, *, reached: bool) -> Text:
    return Text(f"{text} {'reached' if reached else 'MISSED'}", "green" if reached else "red")


def _bytes_table(measured: Sequence[SyncBytes]) -> Table:
    table = _table(
        "Bytes of an IPv4 connection on the sync wire, sealed",
        "real servers",
        "in live changes",
        "in a snapshot",
        "the kernel, unsealed",
        "target",
    )
    for row in measured:
        most = max(row.live, row.snapshot)
        table.add_row(
            f"{row.servers}",
            f"{row.live:.1f}",
            f"{row.snapshot:.1f}",
            f"{_KERNEL_BYTES}",
            _verdict(f"{BYTES_MAX:.0f}", reached=most <= BYTES_MAX),
        )
    return table


def _join_table(measured: Sequence[SyncJoin]) -> Table:
    table = _table(
        "A peer joins",
        "connections",
        "usable after, s: best, median, worst",
        "target",
        "processor, s: peer, leader",
        "live changes, ms: median, 99 %, longest",
        "target",
        "longest step, ms: peer, leader",
        "lost, sent again",
    )
    for connections, group in groupby(measured, key=lambda join: join.connections):
        joins = list(group)
        usable = spread_of([join.usable for join in joins])
        best = min(joins, key=lambda join: join.usable)
        wanted = JOIN_SECONDS_MAX.get(connections)
        longest = min(join.live.longest_ms for join in joins)
        table.add_row(
            f"{connections:,}",
            f"{usable.least:.2f}, {usable.median:.2f}, {usable.most:.2f}",
            "-" if wanted is None else _verdict(f"{wanted:.0f}", reached=usable.least < wanted),
            f"{best.own_follower:.2f}, {best.own_leader:.2f}",
            f"{best.live.median_ms:.1f}, {best.live.most_of_all_ms:.1f}, "
            f"{best.live.longest_ms:.1f}",
            _verdict(f"{DELAY_MS_MAX:.0f}", reached=longest < DELAY_MS_MAX),
            f"{best.blocked_follower * 1e3:.1f}, {best.blocked_leader * 1e3:.1f}",
            f"{sum(join.lost for join in joins)}, {sum(join.repaired for join in joins)}",
        )
    table.caption = (
        "From the first heartbeat until the copy is complete, the same as the leader's, and a "
        "frame was forwarded, while 2,000 connections a second are opened; default socket "
        "buffers. All but the first column of figures and the last are of the best turn."
    )
    return table


def _records_table(measured: Sequence[SyncRecords]) -> Table:
    table = _table(
        "Records told one by one",
        "a second",
        "told",
        "share of a processor: leader, peer",
        "delay, ms: median, 99 %, longest",
        "datagrams a second",
        "lost, sent again",
        "target",
    )
    for row in measured:
        target: Text | str = "sustained" if row.is_sustained else "not sustained"
        if row.wanted == RATE_MIN:
            target = _verdict(f"{RATE_MIN:,.0f}", reached=row.is_sustained)
        delays = row.delays
        table.add_row(
            f"{row.wanted:,.0f}",
            f"{row.told:,.0f}",
            f"{row.share_leader:.0%}, {row.share_follower:.0%}",
            f"{delays.median_ms:.1f}, {delays.most_of_all_ms:.1f}, {delays.longest_ms:.1f}",
            f"{row.datagrams / row.seconds:,.0f}",
            f"{row.lost}, {row.repaired}",
            target,
        )
    table.caption = (
        "Half of them new connections, half closing ones; for each pair one that ended is told "
        "in addition. The leader's share includes that of its connection table."
    )
    return table


def _forwarding_table(measured: Sequence[SyncForwarding]) -> Table:
    table = _table(
        "A director with sync against itself without",
        "what",
        "ratio: median, least, most",
        "target",
        "work ratio",
        "a second: with, without",
        "processor: with, without",
        "opened beside, failed",
    )
    for row in measured:
        table.add_row(*_forwarding_row(row))
    table.caption = (
        "Turn by turn. The work ratio is that of what is carried in a second of the director's "
        "own processor time."
    )
    return table


def _forwarding_row(row: SyncForwarding) -> tuple[str | Text, ...]:
    ratios, work = spread_of(row.ratios()), spread_of(row.work_ratios())
    shares = spread_of(row.share_with).median, spread_of(row.share_without).median
    rates = spread_of(row.with_sync).median, spread_of(row.without).median
    opened = f"{spread_of(row.opened).median:,.0f}" if row.opened else "-"
    target: str | Text = "-"
    if row.target is not None:
        target = _verdict(f"{row.target:.2f}", reached=ratios.median >= row.target)
    return (
        row.name,
        f"{ratios.median:.2f}, {ratios.least:.2f}, {ratios.most:.2f}",
        target,
        f"{work.median:.2f}",
        f"{rates[0]:,.0f}, {rates[1]:,.0f}",
        f"{shares[0]:.0%}, {shares[1]:.0%}",
        f"{opened}, {row.failed:.0f}",
    )
