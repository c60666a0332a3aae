"""A director of plain lists and scans: what a packet of a service must come to.

This is IPVS as its description reads, written again without any of lvsha's tables: every
look-up is a scan, every count is a recount, nothing is remembered that could be found. Of
lvsha it takes only the transition tables of secure TCP and of SCTP, which are data.

It knows no FTP commands, no ICMP, no sync, no local servers, and of schedulers rr, lc and sh.
Packets are given as their ends and what they say; `Verdict` is what becomes of one. Time
moves by `tick`, which ends what is over in full seconds. Times are seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lvsha.datapath import sctp_states, tcp_states
from lvsha.model import ForwardMethod

TCP, UDP, SCTP = 6, 17, 132
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
NAT: Final = ForwardMethod.NAT
POISONED: Final = 65535

TCP_STATES: Final = ("NONE", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA")
TCP_TABLE: Final = {
    # state: (IN syn fin ack rst, OUT syn fin ack rst, input only syn fin ack rst)
    "NONE": "SR CL ES CL  SS TW ES CL  SR CL ES CL",
    "ES": "ES CW ES CL  ES FW ES CL  ES FW ES CL",
    "SS": "ES SS SS CL  SS SS SS SS  ES SS SS CL",
    "SR": "SR TW ES SR  SR TW ES CL  SR TW ES SR",
    "FW": "SR TW FW CL  SS FW FW CL  SR FW FW CL",
    "TW": "SR TW TW CL  SS TW TW TW  SR TW TW CL",
    "CL": "SR CL CL CL  SS CL CL CL  SR CL CL CL",
    "CW": "SR CW CW CL  SS TW CW CL  SR CW CW CL",
    "LA": "SR LA CL LA  SS LA LA CL  SR LA CL LA",
    "LI": "SR LI LI LI  LI LI ES CL  SR LI LI LI",
    "SA": "SR TW ES SR  SR TW ES CL  SR TW ES CL",
}
TCP_TIMEOUTS: Final = (2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120)
TCP_ACTIVE: Final = {1, 2, 3, 10}
TCP_ESTABLISHED, FIN_WAIT, TIME_WAIT, TCP_CLOSE = 1, 4, 5, 6
SCTP_TIMEOUTS: Final = (2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61)
SCTP_ESTABLISHED, SCTP_CLOSED = 8, 13
SCTP_EVENTS: Final = {1: 1, 2: 2, 6: 9, 7: 5, 8: 6, 9: 8, 10: 3, 11: 4, 14: 7}
"""Rows of the tables by chunk type; all other chunks count as data."""


class Packet(NamedTuple):
    """What a packet says; ``says`` is the flag byte of TCP, the chunk types of SCTP."""

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    port: int
    says: tuple[int, ...] = ()


class Verdict(NamedTuple):
    """What becomes of a packet.

    Attributes:
        kind: ``server``, ``client``, ``refused`` with an answer, ``dropped`` without one,
            ``alone`` where it is left to the host, ``waits`` where peers are asked.
        address, port: that NAT writes: of the server, or of the service in whose name a
            reply goes on; of a server of another method only the address.
    """

    kind: str
    address: bytes = b""
    port: int = 0


ALONE, DROPPED, REFUSED, WAITS = map(Verdict, ("alone", "dropped", "refused", "waits"))


@dataclass(eq=False)
class Server:
    """A real server of one service."""

    service: "Service"
    address: bytes
    port: int
    method: ForwardMethod
    weight: int = 1
    upper: int = 0
    lower: int = 0
    overloaded: bool = False
    listed: bool = True
    opened: int = 0
    in_packets: int = 0
    out_packets: int = 0

    def set(self, weight: int, upper: int, lower: int) -> None:
        if upper == 0 or upper > self.upper:
            self.overloaded = False
        self.weight, self.upper, self.lower = weight, upper, lower

    @property
    def usable(self) -> bool:
        return self.weight > 0 and not self.overloaded


@dataclass(eq=False)
class Service:
    """A virtual service; protocol, address and port are 0 and empty where it has a mark."""

    protocol: int
    address: bytes
    port: int
    mark: int
    scheduler: str
    flags: frozenset[str]
    persistence: int
    netmask: bytes
    one_packet: bool
    unknown: str = "reset"
    servers: list[Server] = field(default_factory=list)
    last: Server | None = None

    @property
    def identity(self) -> tuple[int, bytes, int, int]:
        return self.protocol, self.address, self.port, self.mark


@dataclass(eq=False)
class Row:
    """A connection, or a template."""

    protocol: int
    client: bytes
    client_port: int
    virtual: bytes
    port: int
    server: Server
    server_port: int
    method: ForwardMethod
    timeout: float
    expires: float
    parent: "Row | None" = None
    template: bool = False
    one_packet: bool = False
    state: int = 0
    active: bool = False
    only_input: bool = False
    packets: int = 0
    found: bool = True

    @property
    def second(self) -> int:
        """The full second with which it ends."""
        return int(self.expires) + 1

    @property
    def values(self) -> tuple[object, ...]:
        """All that is compared."""
        return (
            *(self.template, self.protocol, self.client, self.client_port),
            *(self.virtual, self.port, self.server.address, self.server_port),
            *(int(self.method), self.state, self.timeout, self.expires),
            *(self.active, self.packets, self.protocol != UDP and self.only_input),
        )


def is_reset(packet: Packet) -> bool:
    if packet.protocol == TCP:
        return bool(packet.says[0] & RST)
    return packet.protocol == SCTP and packet.says[0] == 6


def refusal(packet: Packet) -> Verdict:
    """A reset for what may have one."""
    if is_reset(packet):
        return ALONE
    silent = packet.protocol == SCTP and {6, 10, 11, 14} & set(packet.says)
    return DROPPED if silent else REFUSED


def fold(address: bytes) -> int:
    value = 0
    for at in range(0, len(address), 4):
        value ^= int.from_bytes(address[at : at + 4])
    return value


class NaiveDirector:
    """Lists of services, of connections with the newest last, and of removed servers."""

    def __init__(self, mark_of: Callable[[int, bytes, int], int]) -> None:
        self.mark_of = mark_of
        self.services: list[Service] = []
        self.rows: list[Row] = []
        self.trash: list[tuple[Server, float | None]] = []
        self.trash_at: float | None = None
        self.orphaned = False
        self.settings: dict[str, int] = {"conn_reuse_mode": 1}
        self.tcp_timeouts = list(TCP_TIMEOUTS)
        self.udp_timeout = 300
        self.drop_counter = 0
        self.asked: dict[tuple[object, ...], bool] = {}
        self.waiting: list[Packet] = []

    def is_set(self, name: str) -> bool:
        return bool(self.settings.get(name))

    # Counts

    def counts(self, server: Server) -> tuple[int, int, int]:
        """Active and inactive connections, and templates."""
        rows = [row for row in self.rows if row.server is server]
        active = sum(row.active for row in rows if not row.template)
        templates = sum(row.template for row in rows)
        return active, len(rows) - templates - active, templates

    def children(self, parent: Row) -> list[Row]:
        return [row for row in self.rows if row.parent is parent]

    def bind(self, row: Row) -> None:
        server = row.server
        self.rows.append(row)
        active, inactive, _ = self.counts(server)
        if server.upper and active + inactive >= server.upper:
            server.overloaded = True

    def unbind(self, row: Row) -> None:
        server = row.server
        self.rows.remove(row)
        active, inactive, _ = self.counts(server)
        total = active + inactive
        if server.lower:
            if total < server.lower:
                server.overloaded = False
        elif not server.upper or 4 * total < 3 * server.upper:
            server.overloaded = False

    # Administration

    def add_server(self, server: Server) -> None:
        """Add a server; what is known of it from before the trash gives back."""
        for entry in self.trash:
            old = entry[0]
            if (old.service.identity, old.address, old.port) != (
                server.service.identity,
                server.address,
                server.port,
            ):
                continue
            self.trash.remove(entry)
            if old.service is not server.service:
                old.opened = old.in_packets = old.out_packets = 0
            old.service, old.method, old.listed = server.service, server.method, True
            old.set(server.weight, server.upper, server.lower)
            server = old
            break
        server.service.servers.insert(0, server)

    def remove_server(self, server: Server) -> None:
        service = server.service
        at = service.servers.index(server)
        if service.last is server:
            service.last = service.servers[at - 1] if at else None
        del service.servers[at]
        server.listed = False
        self.trash.append((server, None))
        self.orphaned = self.orphaned or self.is_set("expire_nodest_conn")

    def remove_service(self, service: Service) -> None:
        for server in list(service.servers):
            self.remove_server(server)
        self.services.remove(service)

    # Services and servers

    def service_of(self, packet: Packet) -> Service | None:
        def exact(port: int) -> Service | None:
            wanted = (packet.protocol, packet.destination, port, 0)
            return next((s for s in self.services if s.identity == wanted), None)

        mark = self.mark_of(packet.protocol, packet.destination, packet.port)
        for service in self.services:
            if mark and service.mark == mark:
                return service
        found = exact(packet.port)
        ftp = any(not s.mark and s.port == 21 for s in self.services)
        data_port = packet.port == 20 or packet.port >= 1024
        if found is None and packet.protocol == TCP and ftp and data_port:
            found = exact(21)
        return found or exact(0)

    def schedule(self, service: Service, packet: Packet) -> Server | None:
        if service.scheduler == "rr":
            chosen = self.next_in_turn(service)
            service.last = chosen or service.last
            return chosen
        if service.scheduler == "sh":
            return self.by_source(service, packet)
        least: Server | None = None
        for server in service.servers:
            if server.usable and (least is None or self.load(server) < self.load(least)):
                least = server
        return least

    def load(self, server: Server) -> int:
        active, inactive, _ = self.counts(server)
        return 256 * active + active + inactive

    def next_in_turn(self, service: Service) -> Server | None:
        servers = service.servers
        at = 0 if service.last is None else servers.index(service.last) + 1
        return next((s for s in servers[at:] + servers[:at] if s.usable), None)

    def by_source(self, service: Service, packet: Packet) -> Server | None:
        slots: list[Server] = []
        while service.servers and len(slots) < 256:
            for server in service.servers:
                slots += [server] * max(1, server.weight)
        port = packet.source_port if "sh-port" in service.flags else 0
        product = (fold(packet.source) + port) * 0x61C88647 % 2**32
        first = product >> 24
        if not slots or slots[first].usable or "sh-fallback" not in service.flags:
            return slots[first] if slots and slots[first].usable else None
        tries = [slots[((o + first) % 256 + first) & 255] for o in range(256)]
        return next((server for server in tries if server.usable), None)

    # Packets

    def request(self, packet: Packet, now: float) -> Verdict:
        """A packet from a client."""
        row = next((row for row in self.rows if self.is_of(row, packet)), None)
        replaced: Row | None = None
        if row is not None and self.looks_new(packet) and self.gives_way(row):
            replaced, row = row, None
        elif row is not None and not row.server.listed:
            if not self.services:
                return ALONE
            if not self.is_set("expire_nodest_conn"):
                return DROPPED
            replaced, row = row, None
        if replaced is not None:
            replaced.found = False
        verdict = self.open(packet, now) if row is None else self.go_on(row, packet, now)
        if replaced is not None:
            self.end(replaced)
        return verdict

    def is_of(self, row: Row, packet: Packet) -> bool:
        ends = (row.client, row.client_port, row.virtual, row.port)
        return (
            row.found
            and not row.template
            and row.protocol == packet.protocol
            and ends == (packet.source, packet.source_port, packet.destination, packet.port)
        )

    def looks_new(self, packet: Packet) -> bool:
        if packet.protocol == TCP:
            return bool(packet.says[0] & SYN)
        return packet.protocol == SCTP and packet.says[0] == 1

    def gives_way(self, row: Row) -> bool:
        if self.is_set("expire_nodest_conn") and row.server.weight == 0:
            return True
        mode = self.settings["conn_reuse_mode"]
        if not mode or row.parent is not None:
            return False
        if row.protocol == TCP:
            half_seen = row.state == FIN_WAIT and row.only_input and bool(mode & 2)
            return row.state in {TIME_WAIT, TCP_CLOSE} or half_seen
        return row.protocol == SCTP and row.state == SCTP_CLOSED

    def may_open(self, packet: Packet) -> bool:
        if packet.protocol == TCP:
            flags = packet.says[0]
            return not flags & RST and (bool(flags & SYN) or self.is_set("sloppy_tcp"))
        if packet.protocol == SCTP:
            kind = packet.says[0]
            return kind == 1 or (self.is_set("sloppy_sctp") and kind != 6)
        return True

    def open(self, packet: Packet, now: float) -> Verdict:
        service = self.service_of(packet)
        if service is None:
            return ALONE
        if not self.may_open(packet):
            verdict = self.in_mid_stream(service, packet)
            if verdict is not None:
                return verdict
        if self.settings.get("drop_packet") == 3:
            self.drop_counter -= 1
            if self.drop_counter <= 0:
                self.drop_counter = self.settings["am_droprate"]
                return DROPPED
        if packet.source_port == 20:
            return ALONE
        parent: Row | None = None
        if service.persistence:
            parent = self.template_of(service, packet, now)
            server = None if parent is None else parent.server
        elif not service.mark and packet.port != service.port:
            server = None
        else:
            server = self.schedule(service, packet)
        if server is None:
            return ALONE if service.port == 21 != packet.port else REFUSED
        own_port = server.port or packet.port
        if service.persistence and packet.port != service.port:
            own_port = packet.port
        row = self.make(packet, server, own_port, 3, now)
        row.parent = parent
        row.one_packet = service.one_packet and packet.protocol == UDP
        server.opened += 1
        if parent is not None:
            parent.expires = now + parent.timeout
            parent.packets += row.one_packet
        self.bind(row)
        verdict = self.go_on(row, packet, now)
        if row.one_packet:
            self.unbind(row)
        return verdict

    def in_mid_stream(self, service: Service, packet: Packet) -> Verdict | None:
        """A packet that may open no connection; None if it does all the same."""
        ftp_data = service.port == 21 != packet.port and not service.persistence
        if ftp_data or service.unknown == "kernel":
            return ALONE
        if service.unknown == "adopt":
            return ALONE if is_reset(packet) else None
        if service.unknown == "reset":
            return refusal(packet)
        ends = packet[:5]
        if ends in self.asked:
            return refusal(packet) if self.asked[ends] else DROPPED
        self.asked[ends] = False
        self.waiting.append(packet)
        return WAITS

    def deny(self, now: float) -> list[Verdict]:
        """No peer knows what it was asked for: what becomes of the packets that wait."""
        self.asked = dict.fromkeys(self.asked, True)
        waiting, self.waiting = self.waiting, []
        found = []
        for packet in waiting:
            # Its client may have opened a connection meanwhile.
            if any(self.is_of(row, packet) for row in self.rows):
                del self.asked[packet[:5]]
            found.append(self.request(packet, now))
        return found

    def make(
        self, packet: Packet, server: Server, server_port: int, timeout: float, now: float
    ) -> Row:
        return Row(
            *(packet.protocol, packet.source, packet.source_port, packet.destination, packet.port),
            *(server, server_port, server.method, timeout, now + timeout),
            only_input=server.method is not NAT,
        )

    def template_of(self, service: Service, packet: Packet, now: float) -> Row | None:
        """The template that decides, an old one or a new one."""
        pairs = zip(packet.source, service.netmask or b"\xff" * 16, strict=False)
        client = bytes(byte & mask for byte, mask in pairs)
        own = packet.port == service.port != 21
        protocol, virtual = packet.protocol, packet.destination
        if service.mark:
            protocol, virtual = 0, service.mark.to_bytes(4) + bytes(len(virtual) - 4)
        ends = Packet(protocol, client, 0, virtual, service.port if own else 0)
        for row in self.rows:
            if not row.template or ends[:5] != (
                *(row.protocol, row.client, row.client_port, row.virtual, row.port),
            ):
                continue
            quiet = self.is_set("expire_quiescent_template") and row.server.weight == 0
            if row.server.listed and not quiet:
                return row
            row.port = row.server_port = POISONED
        server = self.schedule(service, packet)
        if server is None:
            return None
        row = self.make(ends, server, server.port if own else 0, service.persistence, now)
        row.template = True
        self.bind(row)
        return row

    def go_on(self, row: Row, packet: Packet, now: float) -> Verdict:
        if row.server.listed:
            row.server.in_packets += 1
        row.packets += 1
        self.step(row, packet, 2 if row.only_input else 0, now)
        return Verdict("server", row.server.address, row.server_port if row.method is NAT else 0)

    def reply(self, packet: Packet, now: float) -> Verdict:
        """A packet from a real server, or one that passes in the name of a service."""
        for row in reversed(self.rows):
            here = (row.virtual, row.port)
            if row.method is NAT:
                here = (row.server.address, row.server_port)
            there = (row.protocol, row.client, row.client_port)
            if row.template or (*there, *here) != (
                *(packet.protocol, packet.destination, packet.port),
                *(packet.source, packet.source_port),
            ):
                continue
            if not row.server.listed and not self.services:
                return ALONE
            if row.server.listed:
                row.server.out_packets += 1
            row.only_input = False
            self.step(row, packet, 1, now)
            return Verdict("client", row.virtual, row.port) if row.method is NAT else ALONE
        return ALONE

    # States

    def step(self, row: Row, packet: Packet, direction: int, now: float) -> None:
        """A packet's state and time-out; the direction is 0 in, 1 out, 2 only in."""
        template = row.parent if row.parent is not None and row.parent.template else None
        if row.protocol == UDP:
            row.timeout = self.udp_timeout
            if direction == 1 and template is not None:
                template.state = 1
        else:
            tcp = row.protocol == TCP
            following = self.following(row, packet, direction)
            established = TCP_ESTABLISHED if tcp else SCTP_ESTABLISHED
            if following == established != row.state and template is not None:
                template.state = 1
            row.state = following
            row.active = following in TCP_ACTIVE if tcp else following == established
            row.timeout = (self.tcp_timeouts if tcp else SCTP_TIMEOUTS)[following]
        row.expires = now + row.timeout

    def following(self, row: Row, packet: Packet, direction: int) -> int:
        if row.protocol == SCTP:
            sctp = (sctp_states.INPUT, sctp_states.OUTPUT, sctp_states.INPUT_ONLY)
            event = SCTP_EVENTS.get(packet.says[0], 0)
            if packet.says[0] in {10, 11} and packet.says[1:2] == (6,):
                event = 9
            return sctp[direction][event][row.state]
        flags = packet.says[0]
        if self.settings.get("secure_tcp") == 3:
            secure = (
                tcp_states.SECURE_INPUT,
                tcp_states.SECURE_OUTPUT,
                tcp_states.SECURE_INPUT_ONLY,
            )
            return secure[direction][flags][row.state]
        for bit, column in ((RST, 3), (SYN, 0), (FIN, 1), (ACK, 2)):
            if flags & bit:
                cells = TCP_TABLE[TCP_STATES[row.state]].split()
                return TCP_STATES.index(cells[4 * direction + column])
        return TCP_CLOSE

    # Time

    def end(self, row: Row) -> None:
        parent = row.parent
        row.parent = None
        self.unbind(row)
        chained = parent is not None and row.timeout == 0 and not self.children(parent)
        if parent is not None and chained and not (parent.template and parent.state):
            self.delete(parent)

    def delete(self, row: Row) -> None:
        if row.parent is not None:
            row.timeout = 0
        self.end(row)

    def next_second(self) -> int | None:
        """The next second in which something is due."""
        due = [row.second for row in self.rows]
        if self.trash and self.trash_at is not None:
            due.append(int(self.trash_at))
        return min(due, default=None)

    def tick(self, now: float, survived: Callable[[Row], bool]) -> None:
        """End what is over.

        Args:
            now: the clock.
            survived: of what ends in the same second as its last child: whether its turn
                came first, so that it lives on. Either is right.
        """
        self.asked.clear()  # it was half a second ago at least
        self.waiting.clear()
        due = [row for row in self.rows if row.second <= now]
        for row in due:
            children = self.children(row)
            if children and (any(child not in due for child in children) or survived(row)):
                row.timeout = 60
                row.expires = now + 60
        while ended := [r for r in self.rows if r.second <= now and not self.children(r)]:
            self.end(ended[0])
        if self.orphaned:
            self.orphaned = False
            self.end_orphans()
        self.look_into_trash(now)

    def end_orphans(self) -> None:
        for row in list(self.rows):
            if row in self.rows and not row.server.listed and not self.children(row):
                parent = row.parent
                self.delete(row)
                if parent in self.rows and not self.children(parent):
                    self.delete(parent)

    def look_into_trash(self, now: float) -> None:
        """Each minute: mark who is idle, and forget who has been for two minutes."""
        if not self.trash:
            self.trash_at = None
        elif self.trash_at is None:
            self.trash_at = now + 60
        elif now >= self.trash_at:
            self.trash_at = now + 60
            kept: list[tuple[Server, float | None]] = []
            for server, idle_since in self.trash:
                if any(self.counts(server)):
                    kept.append((server, idle_since))
                elif idle_since is None:
                    kept.append((server, now))
                elif now < idle_since + 120:
                    kept.append((server, idle_since))
            self.trash = kept
