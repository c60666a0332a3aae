"""Keep bytes in a file that a crash leaves whole: the old ones or the new ones.

What is written goes into a file beside it, to the disk, and then under its name. Only its
owner may read it. A file that cannot be believed is kept aside for an operator, one at most.
"""

import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import trio

from lvsha.errors import HostError

_MODE: Final = 0o600


class Draft(Protocol):
    """A new content that is not in force yet."""

    async def write(self, data: bytes) -> None:
        """Append."""
        ...

    async def finish(self) -> None:
        """Put it into force."""
        ...

    def close(self) -> None:
        """Forget it, unless it is finished."""
        ...


class StateStore(Protocol):
    """Where one content is kept. Methods raise `HostError` if that cannot be done."""

    def time_of_day(self) -> float:
        """Seconds since 1970, or another time that goes on while no process runs."""
        ...

    async def read(self, size_max: int) -> bytes | None:
        """The content; None if there is none."""
        ...

    async def set_aside(self) -> str:
        """Keep the content where it is not read; says where."""
        ...

    def draft(self) -> Draft:
        """Begin to write another; forgotten unless it is finished."""
        ...


class StateFile:
    """A content in a file.

    Args:
        path: of the file; its directory must be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def time_of_day(self) -> float:
        """The clock on the wall."""
        return time.time()

    async def read(self, size_max: int) -> bytes | None:
        """Read the file.

        Raises:
            HostError: it is no file of ours, too large, or cannot be read.
        """

        def read() -> bytes | None:
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with os.fdopen(os.open(self._path, flags), "rb") as file:
                    if os.fstat(file.fileno()).st_size > size_max:
                        raise HostError(f"{self._path} is larger than {size_max} bytes")
                    return file.read()
            except FileNotFoundError:
                return None
            except OSError as error:
                raise HostError(f"{self._path} cannot be read: {error.strerror}") from error

        return await trio.to_thread.run_sync(read)

    async def set_aside(self) -> str:
        """Rename the file; one that was set aside before gives way."""
        aside = self._path.with_name(self._path.name + ".refused")
        try:
            self._path.replace(aside)
        except OSError as error:
            raise HostError(f"{self._path} cannot be renamed: {error.strerror}") from error
        return str(aside)

    def draft(self) -> "FileDraft":
        """A file beside this one."""
        return FileDraft(self._path)


class FileDraft:
    """A file that takes another's place when it is finished."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(path.name + ".new")
        self._file: BinaryIO | None = None

    async def write(self, data: bytes) -> None:
        """Append to the file beside."""

        def write() -> None:
            if self._file is None:
                self._beside.unlink(missing_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._file = os.fdopen(os.open(self._beside, flags, _MODE), "wb")
            self._file.write(data)

        await self._in_thread(write)

    async def finish(self) -> None:
        """Let the disk have it, and rename it."""

        def finish() -> None:
            assert self._file is not None, "something was written"
            with closing(self._file):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._beside.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

        await self._in_thread(finish)

    def close(self) -> None:
        """Forget what was not finished."""
        if self._file is not None:
            self._file.close()
            self._file = None
            with suppress(OSError):
                self._beside.unlink(missing_ok=True)

    async def _in_thread(self, step: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(step)
        except OSError as error:
            raise HostError(f"{self._beside} cannot be written: {error.strerror}") from error
