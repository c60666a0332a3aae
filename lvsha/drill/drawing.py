"""Draw what happened in a span of time as one SVG; a pure function of the recording.

Four bands above one another share the time axis: what each director said it was, the
answers to the UDP probe, the waits of the streams, and the short connections. The
moments of the acts go through all of them. Colours are CSS classes of the page.

Positions are in SVG user units with one decimal; times are seconds.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from lvsha.drill.laboratory import DIRECTORS
from lvsha.drill.recording import ROUTER, Recording, ShortConnection, StateSeen

WIDTH: Final = 1000.0
LEFT: Final = 92.0
RIGHT: Final = 12.0
TOP: Final = 34.0
STATE_HEIGHT: Final = 22.0
STATE_STEP: Final = 28.0
PROBE_HEIGHT: Final = 70.0
STREAM_HEIGHT: Final = 80.0
SHORT_HEIGHT: Final = 80.0
BAND_GAP: Final = 20.0
AXIS_HEIGHT: Final = 26.0
BINS: Final = 150
SINGLE_SPAN_MAX: Final = 3.0
"""Up to this span every answer to the probe has a line of its own."""

TICKS_WANTED: Final = 10
STREAM_ROW_MIN: Final = 1.0

STATE_LABEL_WIDTH_MIN: Final = 46.0
"""A span of a state that is narrower gets no word in it."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where a moment lies."""

    start: float
    end: float

    def x(self, at: float) -> float:
        """The position of a moment, kept within the chart."""
        share = (at - self.start) / (self.end - self.start)
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def shows(self, start: float, end: float) -> bool:
        """Whether a span of time is at least partly in the chart."""
        return start < self.end and end > self.start


def draw(
    recording: Recording, start: float, end: float, outages: Sequence[tuple[float, float]]
) -> str:
    """The chart from ``start`` to ``end``; ``outages`` are shaded in the probe's band."""
    axis = _Axis(start, end)
    routers = list(dict.fromkeys(seen.router for seen in recording.states)) or [ROUTER]
    lanes = [(node, router) for node in DIRECTORS for router in routers]
    bottom = TOP + len(lanes) * STATE_STEP + STATE_HEIGHT - STATE_STEP
    bottom += PROBE_HEIGHT + STREAM_HEIGHT + SHORT_HEIGHT + 3 * BAND_GAP
    parts = list(_axis_ticks(recording, axis, bottom))
    y = TOP
    for node, router in lanes:
        name = node if len(routers) == 1 else f"{node}, {router}"
        seen = [e for e in recording.states if (e.node, e.router) == (node, router)]
        parts += _states(seen, name, axis, y, recording.ended_at)
        y += STATE_STEP
    y += BAND_GAP + STATE_HEIGHT - STATE_STEP
    parts += _probe(recording, axis, y, outages)
    y += PROBE_HEIGHT + BAND_GAP
    parts += _streams(recording, axis, y)
    y += STREAM_HEIGHT + BAND_GAP
    parts += _short(recording, axis, y)
    parts += _moments(recording, axis, bottom)
    height = bottom + AXIS_HEIGHT
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="What happened over time">\n' + "\n".join(parts) + "\n</svg>"
    )


def _states(
    seen: Sequence[StateSeen], name: str, axis: _Axis, y: float, ended_at: float
) -> Iterator[str]:
    yield _band_label(name, y + STATE_HEIGHT / 2)
    ends = [entry.at for entry in seen[1:]] + [ended_at]
    for entry, until in zip(seen, ends, strict=False):
        if not axis.shows(entry.at, until):
            continue
        left, right = axis.x(entry.at), axis.x(until)
        state = escape(entry.state)
        yield (
            f'<rect class="state {state.lower()}" x="{left:.1f}" y="{y:.1f}" '
            f'width="{max(right - left, 1):.1f}" height="{STATE_HEIGHT}" rx="3">'
            f"<title>{name}: {state}</title></rect>"
        )
        if right - left > STATE_LABEL_WIDTH_MIN:
            yield (
                f'<text class="in-state" x="{(left + right) / 2:.1f}" '
                f'y="{y + STATE_HEIGHT / 2 + 4:.1f}">{state}</text>'
            )


def _probe(
    recording: Recording, axis: _Axis, y: float, outages: Sequence[tuple[float, float]]
) -> Iterator[str]:
    yield _band_label("UDP answers", y + PROBE_HEIGHT / 2)
    bottom = y + PROBE_HEIGHT
    for since, until in outages:
        if axis.shows(since, until):
            yield (
                f'<rect class="outage" x="{axis.x(since):.1f}" y="{y:.1f}" '
                f'width="{max(axis.x(until) - axis.x(since), 1.5):.1f}" height="{PROBE_HEIGHT}">'
                f"<title>no answer for {(until - since) * 1000:.0f} ms</title></rect>"
            )
    answers = sorted(
        entry.answered_at
        for entry in recording.load.probe
        if entry.answered_at is not None and axis.start <= entry.answered_at < axis.end
    )
    if axis.end - axis.start <= SINGLE_SPAN_MAX:
        bars = "".join(
            f"M{axis.x(at):.1f} {bottom:.1f}v-{PROBE_HEIGHT * 0.8:.1f}" for at in answers
        )
        yield f'<path class="answers" d="{bars}" stroke-width="1.2"/>'
    else:
        yield from _rates(answers, axis, bottom)
    lost = "".join(
        f"M{axis.x(entry.sent_at):.1f} {bottom:.1f}v-8"
        for entry in recording.load.probe
        if entry.answered_at is None and axis.start <= entry.sent_at < axis.end
    )
    if lost:
        yield f'<path class="lost" d="{lost}"><title>datagrams without an answer</title></path>'
    yield _base_line(bottom)


def _rates(answers: Sequence[float], axis: _Axis, bottom: float) -> Iterator[str]:
    """Answers in each small span of time, where they are too many to be drawn singly."""
    width = (axis.end - axis.start) / BINS
    counts = [0] * BINS
    for at in answers:
        counts[min(int((at - axis.start) / width), BINS - 1)] += 1
    # The height of the usual rate, so that a burst after an outage does not flatten it.
    usual = sorted(counts)[int(BINS * 0.9)] or 1
    bars = "".join(
        f"M{axis.x(axis.start + (index + 0.5) * width):.1f} {bottom:.1f}"
        f"v-{PROBE_HEIGHT * 0.8 * min(count / usual, 1.2):.1f}"
        for index, count in enumerate(counts)
        if count
    )
    # A little wider than a bin: no seams between neighbours.
    stroke = (WIDTH - LEFT - RIGHT) / BINS + 0.4
    yield f'<path class="answers" d="{bars}" stroke-width="{stroke:.2f}"/>'


def _streams(recording: Recording, axis: _Axis, y: float) -> Iterator[str]:
    """Each stream has a row of its own; a wait for an answer is a line in it."""
    yield _band_label("waits of", y + STREAM_HEIGHT / 2 - 7)
    yield _band_label("long ones", y + STREAM_HEIGHT / 2 + 7)
    long = recording.load.long
    row = STREAM_HEIGHT / max(len(long), 1)
    waits, broken = [], []
    for index, entry in enumerate(long):
        middle = y + (index + 0.5) * row
        waits += [
            f"M{axis.x(since):.1f} {middle:.1f}H{axis.x(until):.1f}"
            for since, until in entry.stalls
            if axis.shows(since, until)
        ]
        if entry.broken_at is not None and entry.broken_at < axis.end:
            broken.append(f"M{axis.x(entry.broken_at):.1f} {middle:.1f}H{WIDTH - RIGHT:.1f}")
    thickness = max(row * 0.8, STREAM_ROW_MIN)
    yield f'<path class="waits" d="{"".join(waits)}" stroke-width="{thickness:.2f}"/>'
    if broken:
        yield f'<path class="dead" d="{"".join(broken)}" stroke-width="{thickness:.2f}"/>'
    yield _base_line(y + STREAM_HEIGHT)


def _short(recording: Recording, axis: _Axis, y: float) -> Iterator[str]:
    """Each short connection is a line from its first packet to its last."""
    yield _band_label("short ones", y + SHORT_HEIGHT / 2)
    opening: list[str] = []
    open_: list[str] = []
    dead: list[str] = []
    shown = [
        entry
        for entry in sorted(recording.load.short, key=lambda entry: entry.started_at)
        if axis.shows(entry.started_at, entry.ended_at)
    ]
    lanes = _lanes(shown)
    step = SHORT_HEIGHT / (max(lanes, default=0) + 1)
    for entry, number in zip(shown, lanes, strict=True):
        lane = y + (number + 0.5) * step
        established_at = entry.established_at or entry.ended_at
        opening.append(f"M{axis.x(entry.started_at):.1f} {lane:.1f}H{axis.x(established_at):.1f}")
        if entry.established_at is not None:
            line = f"M{axis.x(established_at):.1f} {lane:.1f}H{axis.x(entry.ended_at):.1f}"
            (dead if entry.reason else open_).append(line)
    for name, lines in (("opening", opening), ("open", open_), ("dead", dead)):
        if lines:
            yield f'<path class="{name}" d="{"".join(lines)}" stroke-width="{step * 0.6:.2f}"/>'
    yield _base_line(y + SHORT_HEIGHT)


def _lanes(entries: Sequence[ShortConnection]) -> list[int]:
    """A lane for each connection, so that none lies over another; as few as possible."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    lanes = []
    for entry in entries:
        while busy and busy[0][0] <= entry.started_at:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (entry.ended_at, lane))
        lanes.append(lane)
    return lanes


def _axis_ticks(recording: Recording, axis: _Axis, y: float) -> Iterator[str]:
    """Ticks in seconds from the moment of the first act."""
    zero = recording.acts[0].at if recording.acts else recording.began_at
    step = _round_step((axis.end - axis.start) / TICKS_WANTED)
    digits = max(0, -math.floor(math.log10(step)))
    for number in range(math.ceil((axis.start - zero) / step), TICKS_WANTED * 100):
        at = zero + number * step
        if at > axis.end:
            return
        x = axis.x(at)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{y:.1f}"/>'
        yield (
            f'<text class="tick" x="{x:.1f}" y="{y + 17:.1f}">'
            + (f"{number * step:+.{digits}f} s</text>" if number else "0</text>")
        )


def _round_step(wanted: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(wanted))
    return next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude >= wanted)


def _moments(recording: Recording, axis: _Axis, y: float) -> Iterator[str]:
    for act in recording.acts:
        if not axis.start <= act.at <= axis.end:
            continue
        x = axis.x(act.at)
        yield f'<path class="moment" d="M{x:.1f} {TOP - 10:.1f}V{y:.1f}"/>'
        yield f'<text class="moment-label" x="{x:.1f}" y="{TOP - 16:.1f}">{escape(act.name)}</text>'


def _band_label(text: str, middle: float) -> str:
    return f'<text class="band" x="{LEFT - 10:.1f}" y="{middle + 4:.1f}">{escape(text)}</text>'


def _base_line(y: float) -> str:
    return f'<path class="base" d="M{LEFT:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>'
