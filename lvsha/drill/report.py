"""Tell a person and a program how a drill ended: the table and the JSON.

Nothing is judged here; every figure comes from `timeline`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import lvsha
from lvsha.drill.laboratory import REAL_SERVERS
from lvsha.drill.options import DrillOptions
from lvsha.drill.recording import ROUTER, Recording
from lvsha.drill.timeline import ActFigures, KindFigures, Verdict

KIND_MEANINGS: Final = {
    "streams": "streams",
    "idle": "idle",
    "young": "young (1 s)",
    "new": "new since",
}


def act_title(act: ActFigures) -> str:
    """What happened, as a heading."""
    node = act.act.node
    titles = {
        "crash": f"Crash: {node} was killed (SIGKILL)",
        "power": f"Power cut: nothing of {node} answered any more",
        "boot": f"Return: {node} had power again and took its place back",
        "handover": f"Handover: {node} has handed over (lvsha handover)",
        "back": f"Handover back: {node} was handed its place again",
        "stop": f"Stop: {node} was stopped cleanly (SIGTERM)",
        "hang": f"Hang: {node} was frozen (SIGSTOP)",
        "other": f"Second crash: {node} was killed (SIGKILL)",
        "sync": f"Sync: the cable of {node} to the sync network was pulled",
        "replug": f"Sync back: the cable of {node} was plugged in again",
        "partition": "Partition: no VRRP message arrived any more",
        "heal": "Heal: VRRP messages arrived again",
        "link": f"Link: the outside cable of {node} was pulled",
        "home": f"Home: {node} was started again and was handed its virtual router",
        "return": f"Return: {node} was started again and took its place back",
        "wake": f"Wake-up: {node} went on (SIGCONT)",
        "reload": f"Reload: {node} and its peer have taken a changed pair file over",
        "restore": f"Reload: {node} and its peer have taken the former pair file over",
        "plug": f"Link back: the cable of {node} was plugged in again",
    }
    return titles[act.act.name]


def facts(act: ActFigures) -> list[tuple[str, str]]:
    """The figures of an act that are no counts of connections: name and value."""
    recovered = "" if act.recovered else " (not over at the end)"
    still = f"; the machine itself stood still for {act.standstill_ms:.0f} ms of it"
    slow = act.attempts.slowest_ms
    values = [
        (
            "outage of the UDP flow",
            f"{act.outage_ms:.0f} ms{recovered}; usual gap up to {act.usual_gap_ms:.0f} ms"
            + (still if act.standstill_ms else ""),
        ),
        ("datagrams lost", f"{act.lost_datagrams} of {act.sent_datagrams}"),
        (_heir_text(act), _takeover_text(act)),
        (
            "in handshake at that moment",
            f"{act.handshakes.tried}, of which {act.handshakes.failed} failed"
            + _in_brackets(act.handshakes.reasons),
        ),
        (
            "new connections tried after it",
            f"{act.attempts.tried}, of which {act.attempts.failed} failed"
            + _in_brackets(act.attempts.reasons)
            + ("" if slow is None else f"; slowest took {slow:.0f} ms"),
        ),
    ]
    if act.two_masters_ms:
        values.append(("both said MASTER", f"for {act.two_masters_ms:.0f} ms"))
    return values


def _heir_text(act: ActFigures) -> str:
    of_router = "" if act.act.router == ROUTER else f" of {act.act.router}"
    return f"{act.act.heir} is MASTER{of_router}"


def _takeover_text(act: ActFigures) -> str:
    if act.takeover_ms is None or act.change_ms is None:
        return "never"
    return f"after {act.takeover_ms:.0f} ms; longest gap at that change {act.change_ms:.0f} ms"


def servers_text(figures: KindFigures) -> str:
    """How the connections of a kind are spread over the real servers, in their order."""
    return "/".join(str(figures.servers.get(name, 0)) for name in REAL_SERVERS)


def sync_text(verdict: Verdict, options: DrillOptions) -> str:
    """What the sync network has done to its frames."""
    frames = verdict.sync_frames
    return (
        f"The sync network dropped {frames.dropped} of {frames.seen} frames; "
        f"{options.sync_loss} % were asked for."
    )


SERVERS_HEADING: Final = "on " + "/".join(
    name if number == 0 else name.rpartition("-")[2] for number, name in enumerate(REAL_SERVERS)
)


def reasons_text(reasons: Mapping[str, int]) -> str:
    """Why connections broke."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def render(verdict: Verdict, options: DrillOptions) -> RenderableType:
    """The table that ends a drill."""
    parts: list[RenderableType] = []
    for act in verdict.acts:
        table = Table(
            title=act_title(act),
            title_justify="left",
            title_style="bold",
            header_style="dim",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        table.add_column("connections", no_wrap=True)
        for name in ("open", "kept", "broken", "longest wait"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(SERVERS_HEADING, no_wrap=True)
        table.add_column("same", no_wrap=True)
        for name, figures in act.kinds:
            table.add_row(
                KIND_MEANINGS[name],
                str(figures.opened),
                str(figures.kept),
                Text(str(figures.broken), style="bold red" if figures.broken else "green"),
                "" if figures.stall_max_ms is None else f"{figures.stall_max_ms:.0f} ms",
                servers_text(figures) if figures.opened else "",
                _kept_server(figures),
            )
        facts_table = Table.grid(padding=(0, 2))
        facts_table.add_column(style="dim")
        facts_table.add_column()
        for name, value in facts(act):
            facts_table.add_row(name, value)
        for name, figures in act.kinds:
            if figures.broken:
                facts_table.add_row(f"why {name} broke", reasons_text(figures.reasons))
        parts += [Text(), table, facts_table]
    if options.sync_loss:
        parts.append(Text(sync_text(verdict, options)))
    parts += [Text(), _verdict_line(verdict), _files(options)]
    return Group(*parts)


def to_json(verdict: Verdict, recording: Recording, options: DrillOptions) -> dict[str, object]:
    """Everything for machines; times are seconds from the beginning of the drill.

    Except for ``began_at``: the beginning on the clock of the samples.
    """
    zero = recording.began_at
    return {
        "lvsha": lvsha.__version__,
        "passed": verdict.passed,
        "verdict": verdict.sentence,
        "broken": verdict.broken,
        "never_opened": verdict.never_opened,
        "client_lateness_max_ms": round(verdict.lateness_max_ms, 1),
        "sync_frames": asdict(verdict.sync_frames),
        "options": {
            name: str(value) if name in {"directory", "json", "html"} else value
            for name, value in asdict(options).items()
        },
        "began_at": zero,
        "duration": round(recording.ended_at - zero, 3),
        "acts": [_act_json(act, zero) for act in verdict.acts],
        "states": [
            {
                "at": round(seen.at - zero, 3),
                "node": seen.node,
                "router": seen.router,
                "state": seen.state,
            }
            for seen in recording.states
        ],
    }


def _act_json(act: ActFigures, zero: float) -> dict[str, object]:
    return {
        "name": act.act.name,
        "node": act.act.node,
        "heir": act.act.heir,
        "router": act.act.router,
        "at": round(act.act.at - zero, 3),
        "until": round(act.act.until - zero, 3),
        "outage_ms": round(act.outage_ms, 1),
        "recovered": act.recovered,
        "usual_gap_ms": round(act.usual_gap_ms, 1),
        "standstill_ms": round(act.standstill_ms, 1),
        "change_ms": None if act.change_ms is None else round(act.change_ms, 1),
        "datagrams_sent": act.sent_datagrams,
        "datagrams_lost": act.lost_datagrams,
        "takeover_ms": None if act.takeover_ms is None else round(act.takeover_ms, 1),
        "two_masters_ms": round(act.two_masters_ms, 1),
        "connections": {
            name: {**asdict(figures), "kept_server": figures.same_server}
            for name, figures in act.kinds
        },
        "handshakes": asdict(act.handshakes),
        "attempts": asdict(act.attempts),
    }


def _kept_server(figures: KindFigures) -> Text:
    if not figures.opened:
        return Text("")
    if figures.same_server:
        return Text("yes", style="green")
    return Text(f"no: {figures.moved} moved", style="bold red")


def _verdict_line(verdict: Verdict) -> Text:
    if verdict.passed:
        return Text(f"PASSED: {verdict.sentence}", style="bold green")
    return Text(f"FAILED: {verdict.sentence}", style="bold red")


def _files(options: DrillOptions) -> Text:
    return Text(
        f"page   {options.html_path}\n"
        f"JSON   {options.json_path}\n"
        f"pair file, logs and samples in {options.directory}",
        style="dim",
    )


def _in_brackets(reasons: Mapping[str, int]) -> str:
    return f" ({reasons_text(reasons)})" if reasons else ""
