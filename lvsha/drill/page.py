"""The page of a drill: one HTML file with drawings, no script and nothing to fetch.

Nothing is judged here; every figure comes from `timeline`, every drawing from
`drawing`. All text that is not this module's own is escaped.
"""

from html import escape
from typing import Final

import lvsha
from lvsha.drill.drawing import draw
from lvsha.drill.options import DrillOptions
from lvsha.drill.recording import Recording
from lvsha.drill.report import (
    KIND_MEANINGS,
    SERVERS_HEADING,
    act_title,
    facts,
    reasons_text,
    servers_text,
    sync_text,
)
from lvsha.drill.timeline import ActFigures, KindFigures, Verdict

LEAD: Final = 1.5
"""How much steady state before the first act the whole picture shows."""

ZOOM_BEFORE: Final = 0.3
ZOOM_AFTER: Final = 0.6
ZOOM_MIN: Final = 1.5
ZOOM_MAX: Final = 8.0

METHOD_NAMES: Final = {"nat": "NAT", "dr": "direct routing", "tun": "tunnel"}

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5c6779; --line: #dfe4ea;
  --good: #16794a; --good-paper: #e3f5ea; --bad: #b3261e; --bad-paper: #fde8e6;
  --master: #1f8a58; --backup: #8fa3bd; --down: #39424f; --stopped: #c77d0a;
  --fault: #c2362b; --init: #c9d1db; --answers: #3b6fd4; --waits: #d98a1b;
  --open: #2a9d8f; --opening: #c5b04a; --shade: #f6b8b2; --moment: #8a2be2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161c; --card: #1a2028; --ink: #e4e9f0; --soft: #97a3b4; --line: #2d3642;
    --good: #63d39b; --good-paper: #12362a; --bad: #ff8a80; --bad-paper: #43201e;
    --master: #2a9d68; --backup: #4d607a; --down: #0b0e12; --stopped: #b5761a;
    --fault: #b5433a; --init: #39434f; --answers: #6d9bf1; --waits: #e5a445;
    --open: #3dbcab; --opening: #a8973f; --shade: #6b2c28; --moment: #c08bff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 56px; }
header { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: baseline; }
h1 { font-size: 26px; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 36px 0 10px; }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
.badge { padding: 3px 12px; border-radius: 999px; font-weight: 600; }
.badge.good { background: var(--good-paper); color: var(--good); }
.badge.bad { background: var(--bad-paper); color: var(--bad); }
.about { color: var(--soft); margin: 6px 0 22px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
.card, .sheet { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 14px 18px; }
.card b { display: block; font-size: 28px; line-height: 1.25; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.sheet { padding: 14px 16px; overflow-x: auto; }
.sheet svg { display: block; min-width: 720px; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; padding-right: 22px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 14px 0 0; }
dt { color: var(--soft); } dd { margin: 0; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft);
  margin: 10px 0 0; padding: 0; list-style: none; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin-right: 6px; vertical-align: -1px; }
pre { margin: 10px 0 0; overflow-x: auto; font-size: 13px; line-height: 1.45; }
summary { cursor: pointer; font-weight: 600; }
footer { color: var(--soft); font-size: 13px; margin-top: 28px; }
svg text { font-size: 12px; fill: var(--soft); }
svg .band { text-anchor: end; } svg .tick { text-anchor: middle; }
svg .in-state { text-anchor: middle; fill: #fff; font-weight: 600; font-size: 11px; }
svg .moment-label { text-anchor: middle; fill: var(--moment); font-weight: 600; }
svg .moment { stroke: var(--moment); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .grid { stroke: var(--line); stroke-width: .6; } svg .base { stroke: var(--line); }
svg path { fill: none; }
svg .state { fill: var(--init); } svg .master { fill: var(--master); }
svg .backup { fill: var(--backup); } svg .down { fill: var(--down); }
svg .stopped { fill: var(--stopped); } svg .fault { fill: var(--fault); }
svg .outage { fill: var(--shade); } svg .answers { stroke: var(--answers); }
svg .lost { stroke: var(--bad); stroke-width: 1.2; } svg .waits { stroke: var(--waits); }
svg .dead { stroke: var(--bad); } svg .open { stroke: var(--open); }
svg .opening { stroke: var(--opening); }
"""

LEGEND: Final = (
    ("master", "MASTER"),
    ("backup", "BACKUP"),
    ("down", "process down"),
    ("stopped", "process stopped"),
    ("fault", "FAULT"),
    ("answers", "UDP answers"),
    ("shade", "outage"),
    ("waits", "a stream waits over 50 ms for its answer"),
    ("opening", "short connection in handshake"),
    ("open", "short connection established"),
    ("bad", "broken or lost"),
)


def render(verdict: Verdict, recording: Recording, options: DrillOptions, pair: str) -> str:
    """The whole page."""
    badge = "good" if verdict.passed else "bad"
    word = "passed" if verdict.passed else "failed"
    title = f"Failover drill: {METHOD_NAMES[options.method]}, IPv{options.family}"
    acts = recording.acts
    start = acts[0].at - LEAD if acts else recording.began_at
    end = acts[-1].until if acts else recording.ended_at
    outages = [(act.outage_from, act.outage_until) for act in verdict.acts]
    body = [
        f"<header><h1>{escape(title)}</h1>",
        f'<span class="badge {badge}">{word}: {escape(verdict.sentence)}</span></header>',
        f'<p class="about">{escape(_about(verdict, options))}</p>',
        _cards(verdict),
        "<h2>What happened</h2>",
        f'<div class="sheet">{draw(recording, start, end, outages)}{_legend()}</div>',
        *(_act(act, recording, outages) for act in verdict.acts),
        "<h2>The pair</h2>",
        '<div class="sheet"><details><summary>The file both directors ran from</summary>',
        f"<pre>{escape(pair)}</pre></details></div>",
        f"<footer>{escape(_footer(verdict))}</footer>",
    ]
    content = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    )


def _about(verdict: Verdict, options: DrillOptions) -> str:
    loss = f" {sync_text(verdict, options)}" if options.sync_loss else ""
    return (
        f"{options.streams} streams with a message every {options.message_interval * 1000:.0f} ms, "
        f"{options.idle} idle connections, {options.churn:g} new connections a second, "
        f"a UDP datagram every {options.probe_interval * 1000:g} ms; "
        f"VRRP advertisements every {options.advert_interval * 1000:g} ms.{loss}"
    )


def _cards(verdict: Verdict) -> str:
    cards = [
        (f"{act.outage_ms:.0f} ms", f"outage, {act.act.name} of {act.act.node}")
        for act in verdict.acts
    ]
    kept = verdict.acts[-1].streams.kept + verdict.acts[-1].idle.kept if verdict.acts else 0
    cards += [
        (str(verdict.broken), "established connections lost"),
        (str(kept), "long connections whole at the end"),
    ]
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in cards
    )
    return f'<div class="cards">{inner}</div>'


def _act(act: ActFigures, recording: Recording, outages: list[tuple[float, float]]) -> str:
    start = min(act.act.at, act.outage_from) - ZOOM_BEFORE
    end = max(act.act.at, act.outage_until) + ZOOM_AFTER
    if act.takeover_ms is not None:
        end = max(end, act.act.at + act.takeover_ms / 1000 + ZOOM_AFTER)
    end = min(max(end, start + ZOOM_MIN), start + ZOOM_MAX)
    rows = "".join(_row(name, figures) for name, figures in act.kinds)
    head = "".join(
        f'<th class="{style}">{name}</th>'
        for style, name in (
            ("", "connections"),
            ("number", "open"),
            ("number", "kept"),
            ("number", "broken"),
            ("number", "longest wait"),
            ("", SERVERS_HEADING),
            ("", "same server"),
        )
    )
    values = facts(act) + [
        (f"why {name} broke", reasons_text(figures.reasons))
        for name, figures in act.kinds
        if figures.broken
    ]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values)
    return (
        f"<h2>{escape(act_title(act))}</h2>"
        f'<div class="sheet"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"<dl>{listed}</dl></div>"
        f'<h3>The moment itself</h3><div class="sheet">{draw(recording, start, end, outages)}</div>'
    )


def _row(name: str, figures: KindFigures) -> str:
    stall = "" if figures.stall_max_ms is None else f"{figures.stall_max_ms:.0f} ms"
    if not figures.opened:
        server = ""
    elif figures.same_server:
        server = '<span class="good">yes</span>'
    else:
        server = f'<span class="bad">no: {figures.moved} moved</span>'
    broken = "bad" if figures.broken else "good"
    return (
        f"<tr><td>{escape(KIND_MEANINGS[name])}</td>"
        f'<td class="number">{figures.opened}</td><td class="number">{figures.kept}</td>'
        f'<td class="number {broken}">{figures.broken}</td><td class="number">{stall}</td>'
        f"<td>{escape(servers_text(figures)) if figures.opened else ''}</td><td>{server}</td></tr>"
    )


def _legend() -> str:
    entries = "".join(
        f'<li><i style="background:var(--{colour})"></i>{escape(meaning)}</li>'
        for colour, meaning in LEGEND
    )
    return f'<ul class="legend">{entries}</ul>'


def _footer(verdict: Verdict) -> str:
    return (
        f"lvsha {lvsha.__version__}. All hosts of the drill share the processors of one machine. "
        "A connection is established once an answer came through it. "
        "Times on the axes count from the first act. "
        f"The probe was never more than {verdict.lateness_max_ms:.0f} ms behind its schedule; "
        "a pause of the client up to that length looks like an outage."
    )
