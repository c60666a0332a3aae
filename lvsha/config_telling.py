"""The part of a pair file that says when the backups are told of connections.

A word, or a table with the one number that is asked for: ``tell = "established"``,
``tell = { packets = 5 }``, ``tell = { after_ms = 500 }``.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lvsha.config_fields import Table, refuse

AFTER_MS_MAX: Final = 60_000
"""Who has been established for a minute is worth as much as any other."""

_WORDS: Final = ("established", "threshold", "templates", "never")
_FORMS: Final = ", ".join(f'"{word}"' for word in _WORDS)


class Tell(Table):
    """When a connection is told; just one of the keys has a value.

    Attributes:
        when: as soon as it is established; by the kernel's rule; its template alone; never.
        packets: with so manieth packet of its client.
        after_ms: once it has been established for so long.
    """

    when: Literal["established", "threshold", "templates", "never"] | None = None
    packets: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    after_ms: Annotated[int, Field(ge=1, le=AFTER_MS_MAX)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if not given:
            yield "packets: missing; expected a number, here or for after_ms"
        for name in given[1:]:
            yield f"{name}: expected none, because of {given[0]}"


def _table(value: object) -> object:
    """Accept one of the words beside the table form."""
    if isinstance(value, Mapping | Tell):
        return value
    if value in _WORDS:
        return {"when": value}
    raise ValueError(f"{_FORMS}, {{ packets = N }} or {{ after_ms = N }}")


TellOrWord = Annotated[Tell, BeforeValidator(_table)]
