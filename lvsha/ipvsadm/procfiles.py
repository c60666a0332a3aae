"""The files ``/proc/net/ip_vs*`` of the kernel's director, as text.

Addresses and ports are in hexadecimal; IPv4 ones in capitals, IPv6 ones in full and in
small letters. Times in ``ip_vs`` are ticks of a clock with `TICKS` in a second. `read` gives
a whole file; the functions for one file each give lines without their ends.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from lvsha.datapath.director import Director
from lvsha.ipvsadm.listing import METHODS, PROTOCOLS, TABLE_SIZE, version_line
from lvsha.ipvsadm.views import (
    Amounts,
    AppView,
    ConnectionView,
    ServerView,
    ServiceView,
    amounts,
    view_connection,
    view_service,
)
from lvsha.model import IPv4_BYTES, Protocol

TICKS: Final = 100
"""Ticks in a second (the kernel's HZ, which is a choice of whoever builds it)."""

_ALL_OF_IPv4: Final = b"\xff" * 4
_PREFIX_OF_ALL: Final = 128


def read(path: str, director: Director, now: float) -> str | None:
    """A file as it would be read now; None if there is none of that name.

    No application helper is ever listed: FTP is part of the director here.
    """
    services = director.services
    table = director.registry.table
    match path.removeprefix("/proc/net/"):
        case "ip_vs":
            lines = services_file(view_service(one, one.servers) for one in services)
        case "ip_vs_conn":
            lines = connections_file(view_connection(one, now) for one in table.connections())
        case "ip_vs_conn_sync":
            lines = origins_file(view_connection(one, now) for one in table.connections())
        case "ip_vs_stats":
            lines = statistics_file(amounts(services.counted()), amounts(services.rates))
        case "ip_vs_stats_percpu":
            lines = processors_file(amounts(services.counted()), amounts(services.rates))
        case "ip_vs_app":
            lines = applications_file(())
        case _:
            return None
    return "".join(f"{line}\n" for line in lines)


def services_file(services: Iterable[ServiceView], table_size: int = TABLE_SIZE) -> Iterator[str]:
    """``/proc/net/ip_vs``."""
    yield version_line(table_size)
    yield "Prot LocalAddress:Port Scheduler Flags"
    yield "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn"
    for service in services:
        if service.mark:
            name = f"FWM  {service.mark:08X}"
        else:
            name = f"{PROTOCOLS[Protocol(service.protocol)]}  {_end(service.address, service.port)}"
        ops = "ops " if service.one_packet else ""
        if service.mark:
            words = f"{service.scheduler} {ops}"
        elif service.family == 4:
            words = f"{service.scheduler} {ops} "
        else:  # these do not tell that they schedule single packets
            words = f"{service.scheduler} "
        yield f"{name} {words}{_persistence(service)}"
        for server in service.servers:
            yield _server_row(server)


def _persistence(service: ServiceView) -> str:
    if not service.persistence:
        return ""
    if service.family == 4:
        netmask = int.from_bytes(service.netmask or _ALL_OF_IPv4)
    else:
        length = int.from_bytes(service.netmask).bit_count() or _PREFIX_OF_ALL
        netmask = int.from_bytes(length.to_bytes(4, "little"))
    return f"persistent {service.persistence * TICKS} {netmask:08X}"


def _server_row(server: ServerView) -> str:
    return (
        f"  -> {_end(server.address, server.port)}      {METHODS[server.method]:<7} "
        f"{server.weight:<6} {server.active:<10} {server.inactive:<10}"
    )


def _end(address: bytes, port: int) -> str:
    text = _address(address)
    return f"{text}:{port:04X}" if len(address) == IPv4_BYTES else f"[{text}]:{port:04X}"


def _address(address: bytes) -> str:
    if len(address) == IPv4_BYTES:
        return address.hex().upper()
    return address.hex(":", 2)


def connections_file(connections: Iterable[ConnectionView]) -> Iterator[str]:
    """``/proc/net/ip_vs_conn``."""
    yield "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData"
    for connection in connections:
        row = f"{_connection(connection)} {connection.remaining:7}"
        if connection.engine:
            found = connection.found.decode("ascii", "backslashreplace")
            row += f" {connection.engine} {found}"
        yield row


def origins_file(connections: Iterable[ConnectionView]) -> Iterator[str]:
    """``/proc/net/ip_vs_conn_sync``: who opened each connection."""
    yield "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires"
    for connection in connections:
        origin = "SYNC" if connection.synced else "LOCAL"
        yield f"{_connection(connection)} {origin:<6} {connection.remaining:7}"


def _connection(connection: ConnectionView) -> str:
    return (
        f"{PROTOCOLS.get(Protocol(connection.protocol), '?'):<3} "
        f"{_address(connection.client)} {connection.client_port:04X} "
        f"{_address(connection.virtual)} {connection.virtual_port:04X} "
        f"{_address(connection.server)} {connection.server_port:04X} "
        f"{connection.state:<11}"
    )


def statistics_file(counted: Amounts, rates: Amounts) -> Iterator[str]:
    """``/proc/net/ip_vs_stats``."""
    yield "   Total Incoming Outgoing         Incoming         Outgoing"
    yield "   Conns  Packets  Packets            Bytes            Bytes"
    yield _amounts(counted)
    yield ""
    yield " Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s"
    yield _amounts(rates)


def processors_file(counted: Amounts, rates: Amounts) -> Iterator[str]:
    """``/proc/net/ip_vs_stats_percpu``, of a director that runs on one processor."""
    yield "       Total Incoming Outgoing         Incoming         Outgoing"
    yield "CPU    Conns  Packets  Packets            Bytes            Bytes"
    yield f"  0 {_amounts(counted)}"
    yield f"  ~ {_amounts(counted)}"
    yield ""
    yield "     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s"
    yield f"    {_amounts(rates)}"


def _amounts(amounts: Amounts) -> str:
    return (
        f"{amounts.connections:8X} {amounts.in_packets:8X} {amounts.out_packets:8X} "
        f"{amounts.in_bytes:16X} {amounts.out_bytes:16X}"
    )


def applications_file(applications: Iterable[AppView]) -> Iterator[str]:
    """``/proc/net/ip_vs_app``."""
    yield "prot port    usecnt name"
    for application in applications:
        yield (
            f"{PROTOCOLS[Protocol(application.protocol)]:<3}  {application.port:<7} "
            f"{application.uses:<6} {application.name:<17}"
        )
