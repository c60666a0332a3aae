"""The listings of ipvsadm, byte for byte as the kernel's tool prints them.

Every function takes views (`lvsha.ipvsadm.views`) and gives lines without their ends. Names
stand for addresses and ports where `Names` knows them; a listing in numbers is one with
`NoNames`.

Widths, and trailing blanks, are those of the tool: scripts cut its lines into columns.
"""

import functools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar, assert_never

from lvsha.datapath.services import RealServer, ServiceIdentity
from lvsha.ipvsadm.names import Names
from lvsha.ipvsadm.requests import Format
from lvsha.ipvsadm.values import FLAG_NUMBERS
from lvsha.ipvsadm.views import Amounts, ConnectionView, DaemonView, ServerView, ServiceView
from lvsha.model import ForwardMethod, IPv4_BYTES, Protocol, format_address

TABLE_SIZE: Final = 4096
"""What the kernel says of its hash table; here a number that tools expect to find."""
_VERSION: Final = "1.2.1"

_NAME_WIDTH: Final = 33
_SERVER_NAME_WIDTH: Final = 28

_TITLES: Final = {
    Format.CONNECTIONS: (
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
    ),
    Format.TUNNELS: (
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn",
    ),
    Format.STATISTICS: (
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes",
        "  -> RemoteAddress:Port",
    ),
    Format.RATES: (
        "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS",
        "  -> RemoteAddress:Port",
    ),
    Format.THRESHOLDS: (
        "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ),
    Format.PERSISTENT: (
        "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ),
}
_CONNECTION_TITLES: Final = (
    "IPVS connection entries",
    "pro expire state       source             virtual            destination",
)
_ENGINE_TITLES: Final = "        pe name          pe_data"

METHODS: Final = {
    ForwardMethod.NAT: "Masq",
    ForwardMethod.TUNNEL: "Tunnel",
    ForwardMethod.DIRECT_ROUTE: "Route",
    ForwardMethod.BYPASS: "Bypass",
}
PROTOCOLS: Final = {
    Protocol.IP: "IP",
    Protocol.TCP: "TCP",
    Protocol.UDP: "UDP",
    Protocol.SCTP: "SCTP",
    Protocol.AH: "AH",
    Protocol.ESP: "ESP",
}

_SCALES: Final = (
    (100_000_000, 1, ""),
    (1_000_000_000, 1_000, "K"),
    (100_000_000_000, 1_000_000, "M"),
    (100_000_000_000_000, 1_000_000_000, "G"),
)
"""Below which number it is divided by what, and the letter that tells so."""
_LARGEST_SCALE: Final = (1_000_000_000_000, "T")

_WORDS: Final = struct.Struct("!4I")
_Listed = TypeVar("_Listed")


def version_line(table_size: int = TABLE_SIZE) -> str:
    """The line above all."""
    return f"IP Virtual Server version {_VERSION} (size={table_size})"


def titles(shown: Format) -> tuple[str, str]:
    """The two lines above services and their servers."""
    return _TITLES[shown]


def service_lines(
    service: ServiceView, shown: Format, names: Names, *, exact: bool = False
) -> Iterator[str]:
    """A service and its servers, in the order in which they stand."""
    name = service_name(service, names)
    match shown:
        case Format.STATISTICS:
            yield f"{name:<{_NAME_WIDTH}}{_numbers(service.counted, exact=exact)}"
        case Format.RATES:
            yield f"{name:<{_NAME_WIDTH}}{_rates(service.rates, exact=exact)}"
        case Format.CONNECTIONS | Format.TUNNELS | Format.THRESHOLDS | Format.PERSISTENT:
            yield f"{name} {service.scheduler}{_options(service)}"
        case _:
            assert_never(shown)
    protocol = 0 if service.mark else service.protocol
    for server in service.servers:
        end = endpoint(server.address, server.port, protocol, names)
        if len(server.address) == IPv4_BYTES:
            end = end[:_SERVER_NAME_WIDTH]
        yield f"  -> {end:<{_SERVER_NAME_WIDTH}}{_server_columns(server, shown, exact=exact)}"


def service_name(service: ServiceView, names: Names) -> str:
    """What a service's line begins with."""
    if service.mark:
        return f"FWM  {_signed(service.mark)}" + (" IPv6" if service.family == 6 else "")
    end = endpoint(service.address, service.port, service.protocol, names)
    name = f"{PROTOCOLS.get(Protocol(service.protocol), '?'):<4} {end}"
    return name[:_NAME_WIDTH] if service.family == 4 else name


def endpoint(address: bytes, port: int, protocol: int, names: Names) -> str:
    """An end, by name where it has one."""
    host = names.host(address) or format_address(address)
    where = (names.service(port, protocol) if port and protocol else None) or str(port)
    return f"{host}:{where}" if len(address) == IPv4_BYTES else f"[{host}]:{where}"


def netmask_text(netmask: bytes) -> str:
    """A mask in dots, or the length of a prefix."""
    if len(netmask) == IPv4_BYTES:
        return format_address(netmask)
    return str(int.from_bytes(netmask).bit_count())


def flags_text(flags: Iterable[str]) -> str:
    """Flags of a scheduler with commas between, in the order of their bits."""
    return ",".join(sorted(flags, key=lambda flag: (FLAG_NUMBERS.get(flag, 0), flag)))


def _options(service: ServiceView) -> str:
    text = ""
    if service.flags:
        text += f" ({flags_text(service.flags)})"
    if service.persistence:
        text += f" persistent {service.persistence}"
        if service.netmask:
            text += f" mask {netmask_text(service.netmask)}"
        if service.engine:
            text += f" pe {service.engine}"
    return text + (" ops" if service.one_packet else "")


def _server_columns(server: ServerView, shown: Format, *, exact: bool) -> str:
    method = METHODS[server.method]
    connections = f"{server.active:<10} {server.inactive:<10}"
    match shown:
        case Format.CONNECTIONS:
            return f" {method:<7} {server.weight:<6} {connections}"
        case Format.TUNNELS:
            tunnel = server.tunnel.describe() if server.method is ForwardMethod.TUNNEL else "n/a"
            return f" {method:<7} {tunnel:<13} {server.weight:<6} {connections}"
        case Format.STATISTICS:
            return _numbers(server.counted, exact=exact)
        case Format.RATES:
            return _rates(server.rates, exact=exact)
        case Format.THRESHOLDS:
            return f" {server.upper:<10} {server.lower:<10} {connections}"
        case Format.PERSISTENT:
            return f" {server.weight:<9} {server.persistent:<11} {connections}"
    assert_never(shown)


def _numbers(amounts: Amounts, *, exact: bool) -> str:
    return "".join(number(value, exact=exact) for value in amounts)


def _rates(amounts: Amounts, *, exact: bool) -> str:
    return _numbers(amounts, exact=exact)


def number(value: int, *, exact: bool) -> str:
    """A number of nine places, scaled down with a letter unless it is to be exact."""
    if exact:
        return f"{value:>{max(9, len(str(value)) + 1)}}"
    for bound, divisor, letter in _SCALES:
        if value < bound:
            return f"{str(value // divisor) + letter:>9}"
    divisor, letter = _LARGEST_SCALE
    return f"{str(value // divisor) + letter:>9}"


# Order


def in_order(
    things: Iterable[_Listed], words: Callable[[_Listed], tuple[int, ...]]
) -> list[_Listed]:
    """Services or servers as the tool sorts them.

    It compares by the sign of a 32-bit difference, so that what is 2^31 or further apart
    stands the other way round.

    Args:
        things: what to sort.
        words: `service_words` or `server_words` of one.
    """
    listed = list(things)
    columns = zip(*map(words, listed), strict=True)
    if all(max(column) - min(column) < 1 << 31 for column in columns):
        return sorted(listed, key=words)
    compare = functools.cmp_to_key(_compare)
    return sorted(listed, key=lambda thing: compare(words(thing)))


def service_words(service: ServiceIdentity | ServiceView) -> tuple[int, ...]:
    """By what services are sorted."""
    address = _address_words(service.address)
    return service.mark, service.family, service.protocol, *address, service.port


def server_words(server: RealServer | ServerView) -> tuple[int, ...]:
    """By what the servers of a service are sorted."""
    return *_address_words(server.address), server.port


def _address_words(address: bytes) -> tuple[int, int, int, int]:
    return _WORDS.unpack(address.ljust(_WORDS.size, b"\0"))


def _compare(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    for one, other in zip(left, right, strict=True):
        if one != other:
            return _signed(one - other)
    return 0


def _signed(word: int) -> int:
    """The low 32 bits as a signed number."""
    word &= 0xFFFF_FFFF
    return word - (1 << 32) if word >> 31 else word


# Connections, time-outs, daemons


def connection_titles(*, engine_data: bool) -> tuple[str, str]:
    """The two lines above connections."""
    first, second = _CONNECTION_TITLES
    return first, second + (_ENGINE_TITLES if engine_data else "")


def connection_line(connection: ConnectionView, names: Names, *, engine_data: bool) -> str:
    """One connection."""
    protocol = connection.protocol
    word = PROTOCOLS.get(Protocol(protocol), "?") if protocol in _KNOWN else str(protocol)
    minutes, seconds = divmod(connection.remaining, 60)
    client = endpoint(connection.client, connection.client_port, protocol, names)
    virtual = endpoint(connection.virtual, connection.virtual_port, protocol, names)
    server = endpoint(connection.server, connection.server_port, protocol, names)
    line = (
        f"{word:<3} {f'{minutes:02}:{seconds:02}':<6} {connection.state:<11} "
        f"{client:<18} {virtual:<18} "
    )
    if engine_data and connection.engine:
        found = connection.found.decode("ascii", "backslashreplace")
        return f"{line}{server:<16} {connection.engine:<18} {found}"
    return line + server


_KNOWN: Final = frozenset(Protocol)


def timeouts_line(tcp: float, tcp_fin: float, udp: float) -> str:
    """The time-outs that ``--set`` changes."""
    return f"Timeout (tcp tcpfin udp): {int(tcp)} {int(tcp_fin)} {int(udp)}"


def daemon_line(daemon: DaemonView) -> str:
    """One sync daemon."""
    parts = [f"mcast={daemon.interface}", f"syncid={daemon.sync_id}"]
    if daemon.length_max is not None:
        parts.append(f"maxlen={daemon.length_max}")
    if daemon.group:
        parts.append(f"group={format_address(daemon.group)}")
    if daemon.port is not None:
        parts.append(f"port={daemon.port}")
    if daemon.ttl is not None:
        parts.append(f"ttl={daemon.ttl}")
    return f"{daemon.role.value} sync daemon ({', '.join(parts)})"
