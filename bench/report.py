"""Show a person what a bench has measured.

Ratios are what counts, and so they come first; absolute figures are those of this machine
at this hour, and stand behind them. A target that is missed is shown, not asserted.
"""

from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.carriers import Carrier
from bench.options import BENCHES
from bench.results import Results, Spread, Traffic, spread_of
from bench.sync_report import show_sync

CARRIERS: Final[dict[Carrier, str]] = {
    "yardstick": "the bare packet loop",
    "director": "the director",
    "none": "no director",
}
_INDENT: Final = (0, 0, 0, 4)


def show(results: Results, console: Console) -> None:
    """Print everything."""
    said = results.environment
    console.print(
        f"Linux {said['kernel']} on {said['machine']}, {said['processors']} processors, "
        f"Python {said['python']}, load average {said['load_average']:.1f} at the start, "
        f"{'' if said['pinned'] else 'not '}pinned"
    )
    if results.traffic:
        console.print(_ratio_table(results.traffic))
    for traffic in results.traffic:
        console.print(f"{BENCHES[traffic.name]}:")
        for line in _details(traffic):
            console.print(Padding(line, _INDENT))
    for footprint in results.footprints:
        console.print(f"{BENCHES['footprint']}, {footprint.method}: {footprint.bytes:.0f} bytes")
        parts = ", ".join(f"{name} {size:.0f}" for name, size in footprint.parts.items())
        console.print(Padding(f"{footprint.connections:,} of them; {parts}", _INDENT))
    if results.processing is not None:
        console.print(f"{BENCHES['processing']}:")
        for name, figures in results.processing.kinds.items():
            line = f"{name}: {figures['us']:.2f} µs, {figures['ratio']:.0f} empty calls"
            console.print(Padding(line, _INDENT))
    show_sync(results, console)


def _ratio_table(measured: list[Traffic]) -> Table:
    table = Table(title="The director against its yardstick", title_justify="left")
    table.add_column("bench")
    for heading in ("ratio", "least to most", "target", "work ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for traffic in measured:
        ratios = traffic.ratios()
        table.add_row(
            BENCHES[traffic.name],
            Text(f"{ratios.median:.2f}", style="bold"),
            f"{ratios.least:.2f} to {ratios.most:.2f}",
            _target(ratios, traffic.target),
            f"{traffic.work_ratios().median:.2f}",
        )
    table.caption = (
        "Ratios of rates, turn by turn, and their median. The work ratio is that of what is "
        "carried in a second of the carrier's own processor time, always against the bare loop."
    )
    return table


def _target(ratios: Spread, target: float | None) -> Text:
    if target is None:
        return Text("-")
    reached = ratios.median >= target
    return Text(f"{target:.2f} {'reached' if reached else 'MISSED'}", "green" if reached else "red")


def _details(traffic: Traffic) -> list[str]:
    lines = []
    for carrier, name in CARRIERS.items():
        rates = spread_of(traffic.rates[carrier])
        line = f"{name}: {_figure(traffic, rates.median)}"
        if carrier != "none":
            share = spread_of(traffic.shares[carrier]).median
            work = spread_of(traffic.work(carrier)).median
            line += f", on {share:.0%} of a processor; {_cost(traffic, work)}"
        failed = traffic.failed.get(carrier, 0.0)
        if failed:
            line += f"; {failed:.0f} connections failed"
        lines.append(line + (", the yardstick" if carrier == traffic.yardstick else ""))
    if traffic.offered:
        lines.append(f"offered: {_figure(traffic, spread_of(traffic.offered).median)}")
    return lines


def _figure(traffic: Traffic, rate: float) -> str:
    if traffic.unit == "bytes":
        return f"{rate * 8 / 1e9:.2f} Gbit/s"
    return f"{rate:,.0f} {traffic.unit}/s"


def _cost(traffic: Traffic, work: float) -> str:
    if traffic.unit == "bytes":
        return f"{65_536 / work * 1e6:.1f} µs for 64 KiB"
    return f"{1e6 / work:.2f} µs for each of the {traffic.unit}"
