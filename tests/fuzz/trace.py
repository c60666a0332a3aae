"""Which lines of a part were reached, at a price that falls as they are.

A trace function is called for each function that is entered. One in which no line is new
any more is not looked at line by line, so that soon only functions with unreached lines
cost anything. Where somebody else traces already (a debugger, a coverage tool), nothing is
traced, and nothing is new.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Self

import lvsha

_PACKAGE = Path(lvsha.__file__).parent
DATAPATH = ("datapath", "wire")
SYNC = ("sync",)
"""Of these only modules that were imported are counted: no shells."""

_Tracer = Callable[[FrameType, str, object], "_Tracer | None"]


class Lines:
    """The lines that were reached; a context in which they are watched.

    Args:
        parts: the packages of lvsha that are watched.

    Attributes:
        found: how many were reached for the first time since it was last set to 0.
    """

    def __init__(self, parts: tuple[str, ...] = DATAPATH) -> None:
        self.found = 0
        self._parts = parts
        self._unreached: dict[CodeType, set[int]] = {}
        self._reached: set[tuple[str, int]] = set()
        self._active = False

    def __len__(self) -> int:
        return len(self._reached)

    def __enter__(self) -> Self:
        self._active = sys.gettrace() is None
        if self._active:
            sys.settrace(self._enter)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._active:
            sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _value: object) -> _Tracer | None:
        unreached = self._unreached.get(frame.f_code)
        if unreached is None:
            unreached = self._unreached[frame.f_code] = self._lines_of(frame.f_code)
        if not unreached:
            return None
        self._reach(frame, unreached)
        return self._step

    def _step(self, frame: FrameType, event: str, _value: object) -> _Tracer:
        if event == "line":
            self._reach(frame, self._unreached[frame.f_code])
        return self._step

    def _reach(self, frame: FrameType, unreached: set[int]) -> None:
        line = frame.f_lineno
        if line in unreached:
            unreached.discard(line)
            self._reached.add((frame.f_code.co_filename, line))
            self.found += 1

    def unreached(self) -> dict[str, list[int]]:
        """By module, the lines of functions that were not reached."""
        missing: dict[str, list[int]] = {}
        for path in sorted(self._files()):
            code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
            lines = {
                line
                for inner in _functions(code)
                for line in self._lines_of(inner)
                if (str(path), line) not in self._reached
            }
            missing[str(path.relative_to(_PACKAGE))] = sorted(lines)
        return missing

    def total(self) -> int:
        """How many lines there are in functions."""
        return len(self) + sum(map(len, self.unreached().values()))

    def _files(self) -> list[Path]:
        names = tuple(f"lvsha.{part}." for part in self._parts)
        return [
            Path(module.__file__)
            for name, module in sys.modules.items()
            if name.startswith(names) and module.__file__ is not None
        ]

    def _lines_of(self, code: CodeType) -> set[int]:
        path = Path(code.co_filename)
        if not any(_PACKAGE / part in path.parents for part in self._parts):
            return set()
        return {line for _, _, line in code.co_lines() if line}


def _functions(code: CodeType, *, inside: bool = False) -> list[CodeType]:
    """The code of all functions in a module; that of modules and classes runs at import."""
    found = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            function = bool(constant.co_flags & 0x1)  # CO_OPTIMIZED
            if function or inside:
                found.append(constant)
            found += _functions(constant, inside=function or inside)
    return found
