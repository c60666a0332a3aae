"""Values of a body of msgpack, of which it is known only that it is one.

Each function returns the value if it is of its type and range, and raises `SyncError` if not.
The messages hold nothing of what came.
"""

from typing import Any

from lvsha.errors import SyncError


def integer(value: object, largest: int, name: str) -> int:
    """A number from 0 to ``largest``; ``name`` is for the message."""
    # A bool is an int to isinstance, but not on the wire.
    if type(value) is not int or not 0 <= value <= largest:
        raise SyncError(f"a {name} out of range")
    return value


def boolean(value: object) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise SyncError("a truth that is neither true nor false")
    return value


def array(value: object, elements_max: int) -> list[Any]:
    """An array of at most so many elements."""
    if type(value) is not list or len(value) > elements_max:
        raise SyncError("an array that is none, or too long")
    return value


def name(value: object, characters_max: int) -> str:
    """A name of at most so many characters."""
    # Names end in logs and on terminals, so nothing in them may control either.
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= characters_max
        or not value.isascii()
        or not value.isprintable()
    ):
        raise SyncError("a name that is none")
    return value
