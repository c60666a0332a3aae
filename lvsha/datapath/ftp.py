"""Find in an FTP control connection where its data connections will be.

FTP (RFC 959, RFC 2428) opens a connection of its own for each transfer and says in text,
on the control connection, where to. Under address translation a director must read that
text: the client's, to know whom the server will call, and the server's, to put the
virtual service in its place. Only the text is dealt with here; connections are none of
this module's business, nor is the packet around the text (see `lvsha.datapath.payload`).

Each call sees the payload of one packet and remembers nothing but the mode that the caller
keeps. What always holds: nothing is raised, whatever the payload; the time taken grows
with its length and no faster; ports that come out are 1 to 65535; and what is not
recognised is to be forwarded unchanged. Not recognised, much as in the kernel's IPVS, are:

* a command or reply that is spread over packets, and so one that ends with a digit, which
  may be half a number;
* PORT and EPRT anywhere but at the start of the payload, and replies likewise: neither a
  second command of a pipeline, nor a reply whose first line is a continued one (``227-``);
* a reply that does not fit the question (227 to EPSV, 229 to PASV), PASV and PORT over
  IPv6, and an address of the other family;
* the six numbers of PORT and 227 with blanks or signs, with more than three digits or
  above 255, or preceded by another number in the text of the reply; PORT and EPRT with
  anything but spaces before what they name;
* the parentheses of 229 missing, or with blanks in them;
* EPSV ALL, LPSV and LPRT (RFC 1639), and whatever is encrypted (RFC 4217).

Beyond the kernel, port 0 is not recognised (nobody can listen there), nor a digit as the
delimiter of RFC 2428 (it cannot be told from the port that it delimits).
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

from lvsha.model import IPv4_BYTES, IPv6_BYTES, parse_address

FTP_PORT: Final = 21
"""Of control connections (RFC 959, section 8)."""
FTP_DATA_PORT: Final = 20
"""From which a server opens active data connections."""


class FtpMode(Enum):
    """What a control connection is about; the kernel's numbers, of which 2 (EPRT) never stays."""

    ACTIVE = 0
    PASV = 1
    EPSV = 3


@dataclass(frozen=True, slots=True)
class PassiveAsked:
    """The client wants to open the data connection; the server's reply will say where to."""

    mode: FtpMode


@dataclass(frozen=True, slots=True)
class ActiveAsked:
    """The client waits at this address and port for the server to open the data connection.

    The address is whatever the client wrote, not necessarily its own. The mode of the
    control connection is ACTIVE from here on.
    """

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class PassiveAnswered:
    """The server waits at this address and port.

    ``payload[start:end]`` says so, and is to be replaced by `passive_text`; the mode of the
    control connection is ACTIVE afterwards.
    """

    address: bytes
    port: int
    start: int
    end: int


# Quantifiers are possessive ("++") wherever a run may be long: nothing is tried twice.
_NUMBERS: Final = rb",".join([rb"([0-9]{1,3})"] * 6) + rb"(?=[^0-9])"
# RFC 2428, section 2: any printable character may delimit, the bar is only recommended.
_DELIMITER: Final = rb"(?P<delimiter>[!-/:-~])"
_ENDPOINT: Final = rb"(?P<family>[12])(?P=delimiter)(?P<address>[0-9A-Fa-f.:]{2,45})(?P=delimiter)"
_END: Final = rb"(?P<port>[0-9]{1,5})(?P=delimiter)"

_PASSIVE_COMMAND: Final = {
    4: re.compile(rb"PASV\r\n|EPSV(?: 1)?\r", re.IGNORECASE),
    6: re.compile(rb"EPSV(?: 2)?\r", re.IGNORECASE),
}
_PORT_COMMAND: Final = re.compile(rb"PORT ++" + _NUMBERS, re.IGNORECASE)
_EPRT_COMMAND: Final = re.compile(rb"(?i:EPRT) ++" + _DELIMITER + _ENDPOINT + _END)
# RFC 1123, section 4.1.2.6: the text before the first digit is anything.
_PASV_REPLY: Final = re.compile(rb"227 [^0-9]*+" + _NUMBERS)
_EPSV_REPLY: Final = re.compile(
    rb"229 [^(]*+\((?P<text>"
    + _DELIMITER
    + rb"(?:(?P=delimiter){2}|"
    + _ENDPOINT
    + rb")"
    + _END
    + rb")"
)
_NUMBERED_ADDRESS_BYTES: Final = {b"1": IPv4_BYTES, b"2": IPv6_BYTES}
"""By the numbers of address families in RFC 2428, section 2."""
_ADDRESS_BYTES: Final = {4: IPv4_BYTES, 6: IPv6_BYTES}
_NUMBER_MAX: Final = 255
_PORT_MAX: Final = 0xFFFF


def from_client(payload: bytes, family: int) -> PassiveAsked | ActiveAsked | None:
    """What a client's packet asks for; None where it is about something else.

    A passive command counts wherever it stands in the payload, and the first one counts;
    only where there is none is the start of the payload looked at for an active one.

    Args:
        payload: of one packet on an established control connection.
        family: of the connection, 4 or 6.
    """
    command = _PASSIVE_COMMAND[family].search(payload)
    if command is not None:
        return PassiveAsked(FtpMode.PASV if command[0][:1] in b"Pp" else FtpMode.EPSV)
    if family == 4:
        port_command = _PORT_COMMAND.match(payload)
        if port_command is not None:
            endpoint = _six_numbers(port_command)
            return ActiveAsked(*endpoint) if endpoint else None
    eprt_command = _EPRT_COMMAND.match(payload)
    if eprt_command is None:
        return None
    endpoint = _extended(eprt_command, _ADDRESS_BYTES[family])
    return ActiveAsked(*endpoint) if endpoint else None


def from_server(payload: bytes, mode: FtpMode, server: bytes) -> PassiveAnswered | None:
    """Where the server waits, by its reply to the passive command before.

    Args:
        payload: of one packet on an established control connection.
        mode: what the client has asked for last (`PassiveAsked`).
        server: the real server's address, which an EPSV reply takes for granted.
    """
    match mode:
        case FtpMode.ACTIVE:
            return None
        case FtpMode.PASV:
            reply = _PASV_REPLY.match(payload)
            if reply is None or len(server) != IPv4_BYTES:
                return None
            endpoint = _six_numbers(reply)
            return PassiveAnswered(*endpoint, reply.start(1), reply.end(6)) if endpoint else None
        case FtpMode.EPSV:
            reply = _EPSV_REPLY.match(payload)
            if reply is None:
                return None
            endpoint = _extended(reply, len(server), server)
            return PassiveAnswered(*endpoint, *reply.span("text")) if endpoint else None
        case _:
            assert_never(mode)


def passive_text(mode: FtpMode, virtual: bytes, port: int) -> bytes:
    """What a reply says in place of where the server waits.

    Args:
        mode: PASV or EPSV, as in `from_server`.
        virtual: the address of the virtual service; IPv4 for PASV.
        port: on which its data connection is expected.
    """
    if mode is FtpMode.EPSV:
        return b"|||%d|" % port
    assert mode is FtpMode.PASV
    assert len(virtual) == IPv4_BYTES
    return b"%d,%d,%d,%d,%d,%d" % (*virtual, *port.to_bytes(2))


def _six_numbers(found: re.Match[bytes]) -> tuple[bytes, int] | None:
    """The address and port of PORT and 227: four bytes and two, each written out."""
    numbers = [int(number) for number in found.groups()]
    if max(numbers) > _NUMBER_MAX:
        return None
    octets = bytes(numbers)
    port = int.from_bytes(octets[4:])
    return (octets[:4], port) if port else None


def _extended(found: re.Match[bytes], size: int, default: bytes = b"") -> tuple[bytes, int] | None:
    """The address and port of EPRT and 229.

    Args:
        found: the match, with the groups of `_ENDPOINT` and `_END`.
        size: of an address of the connection's family, in bytes.
        default: the address where none is written.
    """
    port = int(found["port"])
    if not 0 < port <= _PORT_MAX:
        return None
    if found["family"] is None:
        return default, port
    if _NUMBERED_ADDRESS_BYTES[found["family"]] != size:
        return None
    try:
        address = parse_address(found["address"].decode("ascii"))
    except ValueError:
        return None
    return (address, port) if len(address) == size else None
