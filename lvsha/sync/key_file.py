"""The file with the keys that seal the sync link: read it, watch it, write it.

It is text. Empty lines and lines that begin with ``#`` are for people; any other line is a
key, in three words: `FORMAT`, what the key is for, and its 32 bytes in base64.

* ``current`` seals, and is accepted. There is exactly one.
* ``next`` is accepted, and will seal after the next step of a rotation.
* ``previous`` is accepted, and sealed before.

Beside the current key there is at most one other. A key is changed in three steps, and
after each the file is copied to the other node: `rotate` adds the next key, `rotate` again
makes it the current one, `finish` removes the previous one. The trap is that the nodes take
a step one after the other. So two files that are one step apart must each accept what the
other seals with: they do, because a key is accepted one step before it seals and one step
after. The words are there so that no step can be skipped or taken twice: of two keys
without a word, nobody could tell the new one from the old.

Who can read the file can forge connections, so one that others than its owner may open is
not used. It is replaced as a whole and never written in place: a reader sees the old one or
the new one. Its content stands in no message.
"""

import base64
import binascii
import os
import secrets
import shlex
import stat
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from lvsha.errors import ConfigError, HostError
from lvsha.sync.seal import KEY_BYTES, KEYS_MAX, key_id

DEFAULT_PATH: Final = Path("/etc/lvsha/sync.key")
FORMAT: Final = "lvsha-key-1"
# Two keys take 150 bytes; the rest is for comments.
FILE_BYTES_MAX: Final = 4096

_OTHERS: Final = 0o077
_PREAMBLE: Final = """\
# The keys of the sync link, the same on all nodes, and secret. "lvsha keygen" writes this
# file; see "Sealing the sync link" in docs/operating.md.
"""


class Use(StrEnum):
    """What a key is for, as the file has it."""

    CURRENT = "current"
    NEXT = "next"
    PREVIOUS = "previous"


Ring = dict[Use, bytes]
"""The keys of a file by their use: always a current one, and at most one other."""


class KeyFile:
    """A key file that is watched.

    As long as the file is wrong, each look says so, and whoever watches goes on with the
    keys that were there before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._appearance: tuple[int, ...] | None = None
        self._keys: tuple[bytes, ...] = ()

    def load(self) -> tuple[bytes, ...]:
        """The keys as they are now, for `lvsha.sync.seal.Seal`.

        Raises:
            ConfigError: as `load_keys`.
        """
        # Taken first: if the file is replaced meanwhile, the next look sees it.
        appearance = _appearance(self._path)
        self._keys = load_keys(self._path)
        self._appearance = appearance
        return self._keys

    def changed(self) -> tuple[bytes, ...] | None:
        """The keys, if they are others than at the last look; costs little if not.

        Raises:
            ConfigError: the file is wrong now, or gone.
        """
        if _appearance(self._path) == self._appearance:
            return None
        before = self._keys
        keys = self.load()
        return None if keys == before else keys


def load_keys(path: Path) -> tuple[bytes, ...]:
    """The keys of a file; the first seals, and each is accepted.

    Raises:
        ConfigError: with the file, the line, and what was expected there.
    """
    return tuple(load_ring(path).values())


def load_ring(path: Path) -> Ring:
    """The keys of a file and what they are for, the current one first.

    Raises:
        ConfigError: with the file, the line, and what was expected there.
    """
    ring: Ring = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith(b"#"):
            try:
                _take_line(line, ring)
            except ValueError as error:
                raise ConfigError(f"{path}: line {number}: {error}") from None
    if Use.CURRENT not in ring:
        raise ConfigError(f"{path}: expected a line with a key that is {Use.CURRENT}")
    return dict(sorted(ring.items(), key=lambda entry: entry[0] != Use.CURRENT))


def create(path: Path) -> Ring:
    """Write a new file with a new key.

    Raises:
        ConfigError: there is a file already.
        HostError: it cannot be written.
    """
    ring = {Use.CURRENT: secrets.token_bytes(KEY_BYTES)}
    _write(path, ring, replacing=False)
    return ring


def rotate(path: Path) -> Ring:
    """Add the next key, or make the one that is there the current one.

    Raises:
        ConfigError: the file is wrong, or the rotation before is not finished.
        HostError: it cannot be written.
    """
    ring = load_ring(path)
    if Use.PREVIOUS in ring:
        raise ConfigError(
            f"{path}: has a {Use.PREVIOUS} key; end that rotation first: "
            f"lvsha keygen --finish {shlex.quote(str(path))}"
        )
    current = ring[Use.CURRENT]
    following = ring.get(Use.NEXT)
    if following is None:
        ring = {Use.CURRENT: current, Use.NEXT: _other_than(current)}
    else:
        ring = {Use.CURRENT: following, Use.PREVIOUS: current}
    _write(path, ring, replacing=True)
    return ring


def finish(path: Path) -> Ring:
    """Remove the key that sealed before.

    Raises:
        ConfigError: the file is wrong, or no rotation is at its last step.
        HostError: it cannot be written.
    """
    ring = load_ring(path)
    if Use.NEXT in ring:
        raise ConfigError(
            f"{path}: has a {Use.NEXT} key, which does not seal yet; first: "
            f"lvsha keygen --rotate {shlex.quote(str(path))}"
        )
    if Use.PREVIOUS not in ring:
        raise ConfigError(f"{path}: has one key only; there is no rotation to finish")
    del ring[Use.PREVIOUS]
    _write(path, ring, replacing=True)
    return ring


def _take_line(line: bytes, ring: Ring) -> None:
    """Enter the key of a line; a ValueError says what was expected, and not what was there."""
    words = line.split()
    if len(words) != len(("format", "use", "key")) or words[0] != FORMAT.encode():
        raise ValueError(f"expected {FORMAT}, what the key is for, and the key")
    use = next((use for use in Use if use.encode() == words[1]), None)
    if use is None:
        raise ValueError(f"expected one of {', '.join(Use)} as the second word")
    try:
        key = base64.b64decode(words[2], validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"expected {KEY_BYTES} bytes in base64 as the third word")
    if key in ring.values():
        raise ValueError("expected another key than in a line above")
    if use in ring:
        raise ValueError(f"expected only one key that is {use}")
    if len(ring) == KEYS_MAX:
        raise ValueError(f"expected at most {KEYS_MAX} keys")
    ring[use] = key


def _other_than(current: bytes) -> bytes:
    """A new key with another id, so that people can tell the two apart."""
    while key_id(key := secrets.token_bytes(KEY_BYTES)) == key_id(current):
        pass
    return key


def _appearance(path: Path) -> tuple[int, ...]:
    """What changes with a file, whether it is replaced, rewritten, or given other rights."""
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def _read(path: Path) -> bytes:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for somebody to write.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # Asked of what was opened: the name may lead elsewhere in the next moment.
            _check_mode(path, os.fstat(descriptor).st_mode)
            text = os.read(descriptor, FILE_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: expected at most {FILE_BYTES_MAX} bytes")
    return text


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: expected a regular file")
    if mode & _OTHERS:
        raise ConfigError(
            f"{path}: others than its owner may open it; run: chmod 600 {shlex.quote(str(path))}"
        )


def _lines(ring: Ring) -> Iterator[str]:
    for use, key in ring.items():
        yield f"{FORMAT} {use} {base64.b64encode(key).decode()}\n"


def _write(path: Path, ring: Ring, *, replacing: bool) -> None:
    """Put a file in its place as a whole; one that is replaced keeps its owner."""
    try:
        # The name may be a symbolic link, which stays.
        target = path.resolve()
        # Created with mode 0600 under a name that is free.
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                if replacing:
                    before = target.stat()
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                file.write(_PREAMBLE + "".join(_lines(ring)))
                file.flush()
                os.fsync(file.fileno())
            if replacing:
                temporary.replace(target)
            else:
                # Unlike a renaming, this never takes the place of a file that is there.
                target.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_directory(target.parent)
    except FileExistsError as error:
        raise ConfigError(
            f"{path}: is there already; to change the key: "
            f"lvsha keygen --rotate {shlex.quote(str(path))}"
        ) from error
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {error.strerror}") from error


def _flush_directory(path: Path) -> None:
    """Let the new name survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
