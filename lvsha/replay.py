"""Run a capture through a director: from one file to others.

Each frame that is read becomes a line of JSON, if asked for, and the frames that would have
left go to another capture. Nothing is kept of a frame, so memory does not grow with a
capture. A capture that is malformed somewhere is replayed up to there, and what was written
by then stays.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from lvsha import capture
from lvsha.capture import Captured, CaptureWriter, LinkType, PcapngWriter, PcapWriter
from lvsha.config import Pair
from lvsha.datapath.flow import ETHERNET_BYTES
from lvsha.datapath.reasons import Reason
from lvsha.errors import ConfigError, WireError
from lvsha.rerun import Rerun

_MICROSECONDS: Final = 1_000_000
"""Units of time in a second of a capture whose times need no nanoseconds."""


@dataclass(slots=True)
class Summary:
    """What a replay came to; `fault` is what was wrong with the capture, where it ended."""

    frames: int = 0
    sent: int = 0
    cut: int = 0
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    drops: Counter[Reason] = field(default_factory=Counter)
    fault: str = ""

    def __str__(self) -> str:
        text = f"{self.frames} frames in {self.seconds:.3f} s, {self.sent} sent"
        if self.verdicts:
            text += "; " + ", ".join(f"{name} {n}" for name, n in sorted(self.verdicts.items()))
        if self.drops:
            drops = ", ".join(f"{r.name.lower()} {n}" for r, n in sorted(self.drops.items()))
            text += f"; dropped: {drops}"
        return text + (f"; {self.cut} were captured in part" if self.cut else "")


def replay(
    pair: Pair, node: str, source: Path, target: Path, decisions: Path | None = None
) -> Summary:
    """Replay a capture.

    Args:
        pair: the pair file.
        node: which of its nodes the director is.
        source: the capture; pcap or pcapng.
        target: where a capture of what would have left is written; a name that ends in
            ``.pcapng`` asks for that format, with the names of the interfaces.
        decisions: where the decisions are written, one JSON object in each line.

    Returns:
        A summary. A capture that is malformed somewhere is replayed up to there.

    Raises:
        ConfigError: a file cannot be read or written, or the pair file is refused.
    """
    rerun = Rerun(pair, node)
    try:
        with contextlib.ExitStack() as files:
            stream = files.enter_context(source.open("rb"))
            for file in (target, decisions):
                if file is not None and file.exists() and file.samefile(source):
                    raise ConfigError(f"{file}: expected another file than the capture")
            return _run(rerun, stream, _Files(files, target, decisions))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or target}: cannot be used: {error.strerror or error}"
        ) from error


class _Files:
    """Where a replay writes to; nothing is opened before there is something to write."""

    def __init__(self, files: contextlib.ExitStack, target: Path, decisions: Path | None) -> None:
        self._files = files
        self._target = target
        self._decisions = decisions

    def writer(self, first: Captured | None) -> CaptureWriter:
        """A capture of frames like the first one that was read."""
        stream = self._files.enter_context(self._target.open("wb"))
        link_type = LinkType.ETHERNET if first is None else first.interface.link_type
        if link_type is not LinkType.ETHERNET:
            link_type = LinkType.RAW
        if self._target.suffix == ".pcapng":
            return PcapngWriter(stream, link_type)
        exact = first is not None and first.interface.units != _MICROSECONDS
        return PcapWriter(stream, link_type, exact=exact)

    def lines(self) -> BinaryIO | None:
        """Where decisions are written, if they are."""
        if self._decisions is None:
            return None
        return self._files.enter_context(self._decisions.open("wb"))


def _run(rerun: Rerun, stream: BinaryIO, files: _Files) -> Summary:
    summary = Summary()
    writer: CaptureWriter | None = None
    lines: BinaryIO | None = None
    for captured in _readable(stream, summary):
        if writer is None:
            writer, lines = files.writer(captured), files.lines()
        decision, left = rerun.show(captured)
        summary.frames += 1
        summary.sent += len(left)
        summary.cut += decision.cut
        summary.verdicts[decision.verdict] += 1
        for name, frame in left:
            data = frame if writer.link_type is LinkType.ETHERNET else frame[ETHERNET_BYTES:]
            writer.write(rerun.wall_time, data, name)
        if lines is not None:
            lines.write(decision.json().encode() + b"\n")
    if writer is None and not summary.fault:
        files.writer(None)
        files.lines()
    summary.seconds = rerun.clock
    summary.drops = rerun.director.drops
    return summary


def _readable(stream: BinaryIO, summary: Summary) -> Iterator[Captured]:
    """The frames up to where the capture is at fault, which the summary then tells."""
    try:
        yield from capture.read(stream)
    except WireError as error:
        summary.fault = str(error)
