"""What the command ``ipvsadm`` and a running director send each other, as JSON.

The command knows names and may wait; the director forwards and may not. So the command
sends words, a batch of a restore's lines and the names that it has looked up; the director
answers with text, with where a long listing goes on, and with what it would like to have
names for.

Times are the director's. Addresses are text.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvsha.errors import WireError
from lvsha.ipvsadm.commands import Result
from lvsha.ipvsadm.names import KnownNames
from lvsha.model import format_address, parse_address

LINES_MAX: Final = 100
"""Lines of a restore in one request; some milliseconds of work for the director."""

Port = Annotated[int, Field(ge=0, le=65_535)]
Number = Annotated[int, Field(ge=0, le=255)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(_Message):
    """One command line, or a page of it.

    Attributes:
        words: without the word ``ipvsadm``.
        stdin: lines of a restore.
        following: where to go on.
        addresses: of host names, by name and family; None where there is none.
        ports: by name and protocol.
        hosts: names by address.
        services: names by port and protocol.
    """

    words: tuple[str, ...]
    stdin: str = ""
    following: Annotated[int, Field(ge=0)] = 0
    addresses: tuple[tuple[str, Number, str | None], ...] = ()
    ports: tuple[tuple[str, Number, Port | None], ...] = ()
    hosts: tuple[tuple[str, str | None], ...] = ()
    services: tuple[tuple[Port, Number, str | None], ...] = ()

    @classmethod
    def make(cls, words: tuple[str, ...], stdin: str, following: int, names: KnownNames) -> Self:
        """A request with all names that are known."""
        return cls(
            words=words,
            stdin=stdin,
            following=following,
            addresses=tuple(
                (host, family, None if address is None else format_address(address))
                for (host, family), address in names.addresses.items()
            ),
            ports=tuple((name, number, port) for (name, number), port in names.ports.items()),
            hosts=tuple((format_address(a), name) for a, name in names.hosts.items()),
            services=tuple((port, p, name) for (port, p), name in names.services.items()),
        )

    @classmethod
    def parse(cls, arguments: Mapping[str, object]) -> Self:
        """A request as it came.

        Raises:
            WireError: it makes no sense.
        """
        try:
            return cls.model_validate(arguments)
        except ValidationError as error:
            raise WireError(_fault(error)) from error

    def names(self) -> KnownNames:
        """The names that came with it.

        Raises:
            WireError: an address is none.
        """
        try:
            return KnownNames(
                {
                    (host, family): None if address is None else parse_address(address)
                    for host, family, address in self.addresses
                },
                {(name, protocol): port for name, protocol, port in self.ports},
                {parse_address(address): name for address, name in self.hosts},
                {(port, protocol): name for port, protocol, name in self.services},
            )
        except ValueError as error:
            raise WireError(f"an ipvsadm request with a wrong address: {error}") from error


class Answer(_Message):
    """What a request came to; fields as in `Result`.

    Attributes:
        asked_hosts: addresses for which a name would be printed.
        asked_services: ports, with the protocol.
    """

    status: int
    out: str = ""
    err: str = ""
    following: int | None = None
    ends_restore: bool = False
    asked_hosts: tuple[str, ...] = ()
    asked_services: tuple[tuple[int, int], ...] = ()

    @classmethod
    def make(cls, result: Result, names: KnownNames) -> Self:
        """The answer of a result that was made with these names."""
        return cls(
            status=result.status,
            out=result.out,
            err=result.err,
            following=result.following,
            ends_restore=result.ends_restore,
            asked_hosts=tuple(map(format_address, sorted(names.asked_hosts))),
            asked_services=tuple(sorted(names.asked_services)),
        )

    @classmethod
    def parse(cls, answer: object) -> Self:
        """An answer as it came.

        Raises:
            WireError: it makes no sense.
        """
        try:
            return cls.model_validate(answer)
        except ValidationError as error:
            raise WireError(_fault(error)) from error


def _fault(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"ipvsadm: {where}: {first['msg']}"
