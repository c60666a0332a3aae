"""The parts of a pair file that say how real servers are checked, and what follows.

A `Check` is what is tried; a service's ``checks`` are tried on each of its servers, and a
server with ``checks`` of its own has only these. A `Health` says what a service makes of
the findings.

All times are seconds.
"""

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal, Self

import dns.exception
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import regex
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from lvsha.config_fields import AbsolutePath, FirewallMark, IpAddress, Name, Port, Table, refuse
from lvsha.errors import WireError
from lvsha.wire.dns_response import canonical

CheckType = Literal["tcp", "http", "https", "dns", "udp", "ping", "smtp", "script"]

CHECKS_MAX: Final = 16
"""Of one server; all of them must pass."""
BODY_BYTES_MAX: Final = 1024 * 1024
COMMAND_WORDS_MAX: Final = 64
STATUS_MIN: Final = 100
STATUS_MAX: Final = 599

_HTTP: Final = frozenset({"http", "https"})
_TYPES_OF_KEYS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("method", "path", "host", "status", "body", "body_regex", "body_max"), _HTTP),
    **dict.fromkeys(("sni", "verify", "ca_file"), frozenset({"https"})),
    **dict.fromkeys(("query", "record", "rcode", "answer"), frozenset({"dns"})),
    **dict.fromkeys(
        ("payload", "payload_hex", "expect", "expect_hex", "require_answer"), frozenset({"udp"})
    ),
    "helo": frozenset({"smtp"}),
    **dict.fromkeys(("command", "user", "dynamic"), frozenset({"script"})),
}
"""Keys of `Check` that mean something for some types only."""
_NOT_FOR_SCRIPTS: Final = ("interface", "sources", "mark")
_METHOD: Final = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}$"
_WITHOUT_BLANKS: Final = r"^[\x21-\x7e]{1,2048}$"
_LINE: Final = r"^[^\x00-\x1f\x7f]{1,1024}$"
_HOST: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::[0-9]{0,5})?")
"""A name or an address, and perhaps a port (RFC 9110, section 7.2)."""
_HOST_NAME_MAX: Final = 253
_RCODE_MAX: Final = 15
"""Larger ones need EDNS, which the question has not."""


def _status(value: object) -> object:
    """One status, or a range such as ``200-299``."""
    ends: list[int] = []
    if isinstance(value, int) and not isinstance(value, bool):
        ends = [value, value]
    elif isinstance(value, str) and re.fullmatch(r"\d{3}(-\d{3})?", value, re.ASCII):
        first, _, last = value.partition("-")
        ends = [int(first), int(last or first)]
    if len(ends) != 2 or not STATUS_MIN <= ends[0] <= ends[1] <= STATUS_MAX:
        raise ValueError('a status from 100 to 599, or a range such as "200-299"')
    return ends[0], ends[1]


StatusRange = Annotated[tuple[int, int], BeforeValidator(_status)]
"""The first and the last status of a range."""


def _octets(value: object) -> object:
    """Bytes in hexadecimal, with blanks between them or without."""
    try:
        if isinstance(value, str) and value:
            return bytes.fromhex(value)
    except ValueError:
        pass  # said below, as for a value of another type
    raise ValueError('bytes in hexadecimal, such as "00ff10"')


Octets = Annotated[
    bytes,
    BeforeValidator(_octets),
    Field(max_length=1400),
    PlainSerializer(lambda octets: octets.hex()),
]
"""Bytes, written in hexadecimal."""

Command = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=4096)], ...],
    Field(min_length=1, max_length=COMMAND_WORDS_MAX),
]
"""A program, as an absolute path, and its arguments; no shell looks at them."""
UserName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$")]


def _is_host_name(name: str) -> bool:
    """Whether ``ssl`` takes a name for SNI: it refuses others when a probe begins."""
    try:
        encoded = name.encode("idna")
    except UnicodeError:
        return False
    return 0 < len(encoded) <= _HOST_NAME_MAX and not encoded.startswith(b".")


def _is_host(host: str) -> bool:
    """Whether a Host field has a name or an address."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    if found["v6"] is None:
        return _is_host_name(found["name"])
    try:
        ipaddress.IPv6Address(found["v6"])
    except ValueError:
        return False
    return True


def command_problem(key: str, command: Sequence[str]) -> Iterator[str]:
    """What is wrong with a command, if anything."""
    if command and not command[0].startswith("/"):
        yield f'{key}: expected an absolute path first, such as "/usr/local/bin/check"'


class Check(Table):
    """One thing that is tried on a real server again and again."""

    type: CheckType
    address: IpAddress | None = None
    port: Port | None = None
    interval: Annotated[float, Field(ge=0.05, le=86400)] = 5.0
    retry_interval: Annotated[float, Field(ge=0.05, le=86400)] | None = None
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    timeout: Annotated[float, Field(ge=0.01, le=3600)] = 3.0
    rise: Annotated[int, Field(ge=1, le=100)] = 2
    fall: Annotated[int, Field(ge=1, le=100)] = 3
    interface: Name | None = None
    sources: dict[Name, IpAddress] = Field(default_factory=dict)
    mark: FirewallMark | None = None
    method: Annotated[str, Field(pattern=_METHOD)] = "GET"
    path: Annotated[str, Field(pattern=_WITHOUT_BLANKS)] = "/"
    host: Annotated[str, Field(pattern=_WITHOUT_BLANKS)] | None = None
    status: Annotated[tuple[StatusRange, ...], Field(min_length=1, max_length=64)] = ((200, 299),)
    body: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    body_regex: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    body_max: Annotated[int, Field(ge=1, le=BODY_BYTES_MAX)] = 65_536
    sni: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,253}$")] | None = None
    verify: bool = True
    ca_file: AbsolutePath | None = None
    query: Annotated[str, Field(pattern=_WITHOUT_BLANKS, max_length=253)] = "."
    record: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9]{0,15}$")] = "SOA"
    rcode: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9]{0,15}$")] = "NOERROR"
    answer: Annotated[str, Field(pattern=_LINE)] | None = None
    payload: Annotated[str, Field(max_length=1400)] | None = None
    payload_hex: Octets | None = None
    expect: Annotated[str, Field(min_length=1, max_length=1400)] | None = None
    expect_hex: Octets | None = None
    require_answer: bool = False
    helo: Annotated[str, Field(pattern=_WITHOUT_BLANKS, max_length=253)] = "localhost"
    command: Command | None = None
    user: UserName | None = None
    dynamic: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse([*self._foreign_keys(), *self._problems()])
        return self

    def _foreign_keys(self) -> Iterator[str]:
        for key, types in _TYPES_OF_KEYS.items():
            if key in self.model_fields_set and self.type not in types:
                names = " or ".join(f'"{name}"' for name in sorted(types))
                yield f"{key}: expected only with type = {names}"
        if self.type == "script":
            for key in _NOT_FOR_SCRIPTS:
                if key in self.model_fields_set:
                    yield f"{key}: expected none, because a script opens its own sockets"
        if self.type == "ping" and self.port is not None:
            yield "port: expected none, because an echo has no port"

    def _problems(self) -> Iterator[str]:
        if self.type == "script":
            if self.command is None:
                yield "command: missing; expected a program and its arguments"
            else:
                yield from command_problem("command", self.command)
        if self.body_regex is not None:
            try:
                regex.compile(self.body_regex.encode())
            except regex.error as error:
                yield f"body_regex: expected a regular expression: {error}"
        if self.body is not None and self.body_regex is not None:
            yield "body_regex: expected none, because there is a body to look for"
        if self.host is not None and not _is_host(self.host):
            yield (
                'host: expected a name such as "www.example.org", with labels of 1 to 63 '
                "characters, or an address; and perhaps a port"
            )
        if self.sni is not None and not _is_host_name(self.sni):
            yield (
                'sni: expected a name such as "www.example.org", with labels of 1 to 63 characters'
            )
        if not self.path.startswith("/"):
            yield 'path: expected a path that begins with "/"'
        if self.ca_file is not None and not self.verify:
            yield "ca_file: expected none, because verify is false"
        for text, octets in (("payload", "payload_hex"), ("expect", "expect_hex")):
            if getattr(self, text) is not None and getattr(self, octets) is not None:
                yield f"{octets}: expected none, because there is {text}"
        yield from self._dns_problems()
        if self.address is not None:
            for node, source in self.sources.items():
                if source.version != self.address.version:
                    yield f"sources: expected addresses of one family, not {source} for {node}"

    def _dns_problems(self) -> Iterator[str]:
        try:
            dns.name.from_text(self.query)
        except (dns.exception.DNSException, UnicodeError):
            yield 'query: expected a domain name such as "www.example.org"'
        try:
            dns.rdatatype.from_text(self.record)
        except (dns.exception.DNSException, ValueError):
            yield 'record: expected a type of records such as "A"'
        else:
            try:
                _ = self.answer_octets
            except (dns.exception.DNSException, ValueError, WireError):
                yield f"answer: expected the data of a record of type {self.record}"
        try:
            is_plain = dns.rcode.from_text(self.rcode) <= _RCODE_MAX
        except (dns.exception.DNSException, ValueError):
            is_plain = False
        if not is_plain:
            yield 'rcode: expected a response code such as "NOERROR"'

    @property
    def server_name(self) -> str | None:
        """The name that TLS asks for and looks for in the certificate; None for the address."""
        if self.sni is not None or self.host is None:
            return self.sni
        found = _HOST.fullmatch(self.host)
        return None if found is None else found["name"]

    @property
    def answer_octets(self) -> bytes | None:
        """The data of the record that must stand in the answer of DNS, as `canonical` has them."""
        if self.answer is None:
            return None
        kind = dns.rdatatype.from_text(self.record)
        record = dns.rdata.from_text(dns.rdataclass.IN, kind, self.answer, origin=dns.name.root)
        data = record.to_wire(origin=dns.name.root)
        assert data is not None, "there is no file to write to"
        return canonical(kind, data)

    @property
    def payload_octets(self) -> bytes:
        """What a UDP check sends."""
        return self.payload_hex or (self.payload or "").encode()

    @property
    def expected_octets(self) -> bytes:
        """What must stand in the answer to a UDP check; empty for nothing."""
        return self.expect_hex or (self.expect or "").encode()

    def accepts(self, status: int) -> bool:
        """Whether a server with this HTTP status is well."""
        return any(first <= status <= last for first, last in self.status)


Checks = Annotated[tuple[Check, ...], Field(max_length=CHECKS_MAX)]


class Health(Table):
    """What a service makes of the checks of its servers."""

    unchecked: Literal["down", "up"] = "down"
    on_failure: Literal["quiesce", "remove"] = "quiesce"
    drain: Annotated[float, Field(ge=0, le=86400)] = 0.0
    slow_start: Annotated[float, Field(ge=0, le=86400)] = 0.0
    quorum: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    hysteresis: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    quorum_up: Command | None = None
    quorum_down: Command | None = None
    command_user: UserName | None = None
    command_timeout: Annotated[float, Field(ge=0.1, le=3600)] = 10.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> Iterator[str]:
        if self.hysteresis >= self.quorum:
            yield f"hysteresis: expected a number below quorum ({self.quorum})"
        for key in ("quorum_up", "quorum_down"):
            yield from command_problem(key, getattr(self, key) or ())


def check_reach(
    check: Check, address: IpAddress, port: int, roles: Mapping[str, Collection[str]]
) -> Iterator[str]:
    """Mistakes of a check that only show when other tables are looked at.

    Args:
        check: which.
        address: of the server.
        port: of the server; 0 for that of the packet.
        roles: the roles of the interfaces of each node.
    """
    if check.type not in {"ping", "script"} and not (check.port or port):
        yield "port: missing; expected a port, because the server has none of its own"
    end = check.address or address
    for node, source in check.sources.items():
        if node not in roles:
            yield f"sources.{node}: expected the name of a node"
        if source.version != end.version:
            yield f"sources.{node}: expected an address of the family of {end}"
    if check.interface is not None:
        for node, names in roles.items():
            if check.interface not in names:
                yield (
                    f"interface: expected a role that nodes.{node}.interfaces has, "
                    f"not {check.interface!r}"
                )
