"""Decide what becomes of each frame: the heart of the datapath.

A `Director` is a pure function of its configuration, the frames and the times it is given:
it reads no clock and does no I/O, so that a capture can be replayed through it. The order
of its steps is that of the kernel's IPVS: find the connection; else the service; choose a
real server; create the connection; count; step the protocol's state; forward; report.

What always holds:

* A frame that is dropped as malformed has changed nothing.
* Only the director changes a connection. What others must know is reported as
  `ConnectionChange` values, at most one for each connection between two calls of
  `take_changes`, of which the newest counts.
* New connections are opened only for addresses that this node holds. Connections that
  exist are forwarded in any case, so that a node that has just lost an address still
  carries the packets that were on their way to it.

Times are seconds on the caller's clock.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lvsha.datapath import icmp_errors, tcp_states
from lvsha.datapath.connections import UNTOLD, Connection, ConnectionTable, reply_key
from lvsha.datapath.flow import Frame
from lvsha.datapath.network import Network, NetworkChange, Outgoing
from lvsha.datapath.reasons import Reason
from lvsha.datapath.schedulers import SCHEDULERS
from lvsha.datapath.services import RealServer, Statistics, VirtualService
from lvsha.datapath.tcp_states import INPUT, INPUT_ONLY, OUTPUT, RST, SYN
from lvsha.datapath.transmit import ANSWERS_PER_SECOND, Transmitter
from lvsha.datapath.verdicts import (
    ACCEPT,
    Drop,
    ErrorToClient,
    ErrorToServer,
    TunnelError,
    Verdict,
)
from lvsha.model import (
    ConnectionChange,
    ConnectionChanged,
    ConnectionEnded,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    Protocol,
)
from lvsha.wire import icmp

EXPIRE_BATCH: Final = 2000
"""Connections looked at in one call of `expire`; some milliseconds of work."""
REFRESH_PART: Final = 0.25
"""After this part of its time-out a connection in use is reported again; a copy lives
longer by the same part, so that it never ends before its original."""

_TCP: Final = int(Protocol.TCP)
_NO_OUTPUT: Final = int(ConnectionFlag.NO_OUTPUT)
_INACTIVE: Final = int(ConnectionFlag.INACTIVE)
_SYNC: Final = int(ConnectionFlag.SYNC)
_NEVER: Final = float("inf")
_INITIAL_TIMEOUT: Final = 3.0
"""The kernel gives a connection 3 s until its first state."""
_TCP_STATES: Final = len(tcp_states.TcpState)


@dataclass(frozen=True, slots=True)
class Reporting:
    """When a connection is reported to the backups.

    ``established``: when a TCP connection reaches a state that backups are told of or a
    UDP flow begins, and again before a copy could expire. ``threshold``: the kernel's
    rule, when the count of requests modulo ``period`` equals ``threshold`` (or, with
    period 0, once), and when a closing state is entered.
    """

    when: Literal["established", "threshold"] = "established"
    threshold: int = 3
    period: int = 50


class Director:
    """One director.

    Args:
        connections_max: the limit of the connection table.
        reporting: when changes are reported; None reports nothing.
        answers_per_second: the limit of ICMP errors of its own.

    Attributes:
        services: by name.
        table: the connections.
        network: the mirror of the host's network.
        drops: frames dropped, by reason.
        untold: what `take_changes` would return; always the same object.
    """

    def __init__(
        self,
        *,
        connections_max: int,
        reporting: Reporting | None = None,
        answers_per_second: float = ANSWERS_PER_SECOND,
    ) -> None:
        self.drops: Counter[Reason] = Counter()
        self.table = ConnectionTable(connections_max)
        self.network = Network(self.drops)
        self.services: dict[str, VirtualService] = {}
        self._carry_out = Transmitter(self.network, self.drops, answers_per_second).carry_out
        self._reporting = reporting
        self._by_key: dict[bytes, VirtualService] = {}
        self._nat_servers: Counter[bytes] = Counter()
        self._removed: dict[tuple[bytes, bytes, int], RealServer] = {}
        self.untold: dict[bytes, Connection | ConnectionEnded] = {}
        self._generation = 0
        self._tcp_timeouts = tcp_states.timeouts()
        self._udp_timeout = 300.0

    # Configuration

    def set_timeouts(self, *, tcp: float, tcp_fin: float, udp: float) -> None:
        """As ``ipvsadm --set``; connections take them over with their next packet."""
        self._tcp_timeouts = tcp_states.timeouts(tcp, tcp_fin)
        self._udp_timeout = udp

    def add_service(
        self,
        name: str,
        protocol: Protocol,
        address: bytes,
        port: int,
        scheduler: str,
        flags: Collection[str] = (),
    ) -> VirtualService:
        """Add a virtual service; the scheduler's name must be one of `SCHEDULERS`."""
        service = VirtualService(name, protocol, address, port, scheduler)
        assert service.key not in self._by_key, "an address and port is one service"
        service.scheduler = SCHEDULERS[scheduler](service.servers, flags)
        self.services[name] = service
        self._by_key[service.key] = service
        return service

    def add_server(
        self,
        service: VirtualService,
        address: bytes,
        port: int,
        weight: int,
        method: ForwardMethod,
    ) -> RealServer:
        """Add a real server at the head of a service's list.

        One that was removed while connections to it remained comes back with them.
        """
        server = self._removed.pop((service.key, address, port), None)
        if server is None or server.method is not method:
            server = RealServer(service, address, port, weight, method)
        server.weight = weight
        server.available = True
        service.servers.insert(0, server)
        if method is ForwardMethod.NAT:
            self._nat_servers[bytes((service.protocol,)) + address + port.to_bytes(2)] += 1
        service.scheduler.updated()
        return server

    def edit_server(self, server: RealServer, weight: int) -> None:
        """Change a weight; 0 keeps connections and takes no new ones."""
        server.weight = weight
        server.service.scheduler.updated()

    def remove_server(self, server: RealServer) -> None:
        """Take a server from its service; its connections' packets are dropped from now on."""
        service = server.service
        service.servers.remove(server)
        server.available = False
        service.retired.add(server.statistics)
        server.statistics = Statistics()
        if server.active or server.inactive:
            self._removed[service.key, server.address, server.port] = server
        if server.method is ForwardMethod.NAT:
            key = bytes((service.protocol,)) + server.address + server.port.to_bytes(2)
            self._nat_servers[key] -= 1
        service.scheduler.updated(server)

    def hold(self, address: bytes, *, held: bool, in_transition: bool = False) -> None:
        """Open new connections for an address, or no longer.

        Args:
            address: a virtual address.
            held: whether new connections are opened.
            in_transition: the address has moved to or from this node a moment ago, and some
                have not heard of it yet; each connection is then told from its first packet
                on, because its next one may go to the other node.
        """
        for service in self.services.values():
            if service.address == address:
                service.held = held
                service.in_transition = in_transition

    def learn(self, change: NetworkChange) -> list[Outgoing]:
        """Take over a change of the host's network; returns frames that waited for it."""
        return self.network.apply(change)

    def keep_ways_warm(self) -> None:
        """See to it that the ways to all real servers are known before a packet needs them."""
        for service in self.services.values():
            for server in service.servers:
                hop = self.network.hop(server.address)
                if hop is not None:
                    hop.used = True
                    if not hop.header:
                        self.network.want(hop)

    # Frames

    def process(self, frame: Frame, received: int, now: float) -> Sequence[Outgoing]:
        """Read a frame of so many bytes, decide, and return what is to be sent for it."""
        reason = frame.read(received)
        if reason is not None:
            self.drops[reason] += 1
            return ()
        if not frame.protocol:
            return ()
        return self._carry_out(frame, self.handle(frame, now), now)

    def handle(self, frame: Frame, now: float) -> Verdict:
        """Decide about a frame that `Frame.read` has found in order."""
        key = frame.key
        connection = self.table.inbound.get(key)
        if connection is None:
            connection = self.table.outbound.get(key)
            if connection is not None:
                return self._reply(connection, frame, now)
            return self._unknown(frame, now) if key else self._icmp(frame)
        server = connection.server
        if frame.protocol == _TCP:
            state = connection.state
            flags = frame.flags
            if flags & SYN and not flags & RST and tcp_states.REUSABLE[state]:
                self._end(connection)
                return self._unknown(frame, now)
            if not server.available:
                return Drop(Reason.SERVER_GONE)
            transitions = INPUT_ONLY if connection.flags & _NO_OUTPUT else INPUT
            new_state = transitions[flags][state]
            if new_state != state:
                self._enter(connection, new_state, now)
            else:
                timeout = self._tcp_timeouts[state]
                connection.expires = now + timeout
                if timeout != connection.timeout:
                    self._change_timeout(connection, timeout)
        else:
            if not server.available:
                return Drop(Reason.SERVER_GONE)
            timeout = self._udp_timeout
            connection.expires = now + timeout
            if timeout != connection.timeout:
                self._change_timeout(connection, timeout)
        statistics = server.statistics
        statistics.in_packets += 1
        statistics.in_bytes += frame.length
        connection.packets += 1
        if now >= connection.report_at:
            self._report(connection, now)
        return server.to_server

    def _reply(self, connection: Connection, frame: Frame, now: float) -> Verdict:
        server = connection.server
        if frame.protocol == _TCP:
            state = connection.state
            new_state = OUTPUT[frame.flags][state]
            if new_state != state:
                self._enter(connection, new_state, now)
            else:
                timeout = self._tcp_timeouts[state]
                connection.expires = now + timeout
                if timeout != connection.timeout:
                    self._change_timeout(connection, timeout)
        else:
            timeout = self._udp_timeout
            connection.expires = now + timeout
            if timeout != connection.timeout:
                self._change_timeout(connection, timeout)
        if server.available:
            statistics = server.statistics
            statistics.out_packets += 1
            statistics.out_bytes += frame.length
        return server.to_client

    def _unknown(self, frame: Frame, now: float) -> Verdict:
        """A packet without connection: a new one, if it is for a service and may open one."""
        key = frame.key
        size = (len(key) - 6) // 2
        service = self._by_key.get(key[:2] + key[2 + size : 2 + 2 * size] + key[-2:])
        if service is None:
            sender = key[1:2] + key[2 : 2 + size] + key[-4:-2]
            if self._nat_servers[sender] > 0 and not self.network.is_local(
                key[2 + size : 2 + 2 * size]
            ):
                return Drop(Reason.UNKNOWN_REPLY)
            return ACCEPT
        if frame.protocol == _TCP and (not frame.flags & SYN or frame.flags & RST):
            return Drop(Reason.NO_CONNECTION)
        if not service.held:
            return Drop(Reason.NOT_MASTER)
        if self.table.full:
            return Drop(Reason.TABLE_FULL)
        server = service.scheduler.schedule(key)
        if server is None:
            return Drop(Reason.NO_SERVER, icmp.PORT_UNREACHABLE)
        self._open(key, server, now)
        server.statistics.connections += 1
        return self.handle(frame, now)

    def _icmp(self, frame: Frame) -> Verdict:
        if not icmp_errors.is_error(frame):
            return ACCEPT
        inner = icmp_errors.tunnelled(frame)
        if inner is not None:
            return self._tunnel_error(frame, inner)
        key = icmp_errors.related_key(frame)
        if key is None:
            return ACCEPT
        connection = self.table.inbound.get(key)
        if connection is not None:
            towards: Verdict = ErrorToServer(connection)
        else:
            connection = self.table.outbound.get(key)
            if connection is None:
                return ACCEPT
            towards = ErrorToClient(connection)
        server = connection.server
        if server.method is ForwardMethod.NAT and not icmp_errors.checksum_is_right(frame):
            return Drop(Reason.ICMP_CHECKSUM)
        if server.available:
            statistics = server.statistics
            if isinstance(towards, ErrorToServer):
                statistics.in_packets += 1
                statistics.in_bytes += frame.length
            else:
                statistics.out_packets += 1
                statistics.out_bytes += frame.length
        return towards

    def _tunnel_error(self, frame: Frame, inner: int) -> Verdict:
        """An error about a tunnel packet, if it is one that this director sent."""
        source, destination = icmp_errors.tunnel_ends(frame)
        key = icmp_errors.original_key(frame, inner)
        connection = self.table.inbound.get(key) if key is not None else None
        if (
            connection is None
            or connection.server.method is not ForwardMethod.TUNNEL
            or connection.server.address != destination
            or not self.network.is_local(source)
        ):
            return ACCEPT
        if not icmp_errors.checksum_is_right(frame):
            return Drop(Reason.ICMP_CHECKSUM)
        if connection.server.available:
            statistics = connection.server.statistics
            statistics.out_packets += 1
            statistics.out_bytes += frame.length
        return TunnelError(connection, inner)

    # Connections

    def _open(self, key: bytes, server: RealServer, now: float) -> Connection:
        connection = Connection(key, server, server.connection_flags, _INITIAL_TIMEOUT)
        connection.expires = now + _INITIAL_TIMEOUT
        if server.method is ForwardMethod.NAT:
            connection.reply_key = reply_key(key, server.address, server.port)
        if self._reporting is None or key[1] == Protocol.TCP:
            connection.report_at = _NEVER
        if self._reporting is not None and self._reporting.when == "threshold":
            connection.report_at = 0.0  # every packet looks at the count
        server.inactive += 1
        self.table.add(connection)
        return connection

    def _enter(self, connection: Connection, state: int, now: float) -> None:
        """Change a TCP state, with the time-out and counts that go with it."""
        connection.state = state
        connection.timeout = timeout = self._tcp_timeouts[state]
        connection.expires = now + timeout
        self.table.hasten(connection)
        if tcp_states.ACTIVE[state] != connection.active:
            self._count_as(connection, active=tcp_states.ACTIVE[state])
        reporting = self._reporting
        if reporting is not None and self._is_worth_telling(connection):
            if reporting.when == "established":
                self._report(connection, now)
            elif state != tcp_states.TcpState.ESTABLISHED and state != connection.told_state:
                self._tell(connection)

    def _change_timeout(self, connection: Connection, timeout: float) -> None:
        """Take over a time-out that was set since; a shorter one moves the end nearer."""
        connection.timeout = timeout
        self.table.hasten(connection)

    def _count_as(self, connection: Connection, *, active: bool) -> None:
        server = connection.server
        if active:
            connection.flags &= ~_INACTIVE
            server.active += 1
            server.inactive -= 1
        else:
            connection.flags |= _INACTIVE
            server.active -= 1
            server.inactive += 1

    def _end(self, connection: Connection) -> None:
        """Remove a connection from the table and from its server's counts."""
        self.table.remove(connection)
        server = connection.server
        if connection.active:
            server.active -= 1
        else:
            server.inactive -= 1
        if not server.available and not server.active and not server.inactive:
            identity = (server.service.key, server.address, server.port)
            if self._removed.get(identity) is server:
                del self._removed[identity]
        if connection.told_state != UNTOLD:
            key = connection.key
            self.untold[key] = ConnectionEnded(key, connection.virtual[0])

    def expire(self, now: float) -> None:
        """End connections whose time is over, at most `EXPIRE_BATCH` in one call."""
        for connection in self.table.expired(now, EXPIRE_BATCH):
            self._end(connection)

    @property
    def deadline(self) -> float | None:
        """When `expire` next has work."""
        return self.table.deadline

    # What backups are told, and what a backup is told

    def _report(self, connection: Connection, now: float) -> None:
        """Report a connection, if the rule for reports says so at this packet."""
        reporting = self._reporting
        assert reporting is not None, "report_at is never reached without reporting"
        if reporting.when == "threshold":
            self._report_by_count(connection, reporting)
            return
        if not self._is_worth_telling(connection):
            return
        connection.report_at = now + connection.timeout * REFRESH_PART
        self._tell(connection)

    def _is_worth_telling(self, connection: Connection) -> bool:
        """Whether backups are told of connections in this state."""
        return (
            connection.protocol != Protocol.TCP
            or tcp_states.TOLD[connection.state]
            or connection.server.service.in_transition
        )

    def _report_by_count(self, connection: Connection, reporting: Reporting) -> None:
        if not self._is_worth_telling(connection):
            return
        count = connection.packets
        if reporting.period:
            due = count % reporting.period == reporting.threshold
        else:
            due = count == reporting.threshold
        if due:
            self._tell(connection)

    def _tell(self, connection: Connection) -> None:
        connection.told_state = connection.state
        self.untold[connection.key] = connection

    def take_changes(self) -> list[ConnectionChange]:
        """What has changed since the last call: the newest word about each connection."""
        changes: list[ConnectionChange] = [
            ConnectionChanged(change.record()) if isinstance(change, Connection) else change
            for change in self.untold.values()
        ]
        self.untold.clear()
        return changes

    def tell_all(self, addresses: Collection[bytes]) -> None:
        """Report what was not told yet of these virtual addresses, half-open ones too.

        A node that gives up its addresses calls this, so that its successor knows even
        connections in the middle of their handshake.
        """
        if self._reporting is None:
            return
        for connection in self.table.inbound.values():
            if connection.told_state != connection.state and connection.virtual[0] in addresses:
                self._tell(connection)

    def records(self, addresses: Collection[bytes]) -> Iterator[ConnectionRecord]:
        """All connections of these virtual addresses, read while the table goes on changing."""
        for key in list(self.table.inbound):
            connection = self.table.inbound.get(key)
            if connection is not None and connection.virtual[0] in addresses:
                yield connection.record()

    def apply(self, record: ConnectionRecord, now: float) -> Reason | None:
        """Take over what another director told; returns why it cannot be.

        A record for a connection that has moved to another server replaces it. Only where
        this node opens connections itself, an inactive one does not: there it is the late
        end of one that was replaced (as in the kernel). A copy follows its source.
        """
        if record.protocol == Protocol.TCP and not 0 <= record.state < _TCP_STATES:
            return Reason.MALFORMED
        key = record.key
        connection = self.table.inbound.get(key)
        if connection is not None and (
            connection.server.address != record.server
            or connection.server.port != record.server_port
        ):
            if record.flags & _INACTIVE and connection.server.service.held:
                return None
            self._end(connection)
            self.untold.pop(key, None)
            connection = None
        if connection is None:
            server = self._server_for(record)
            if server is None:
                return Reason.SERVER_GONE
            if self.table.full:
                return Reason.TABLE_FULL
            connection = self._open(key, server, now)
            connection.flags |= _SYNC
        connection.state = connection.told_state = record.state
        connection.timeout = record.timeout
        connection.expires = now + record.timeout * (1 + REFRESH_PART)
        connection.generation = self._generation
        self.table.hasten(connection)
        active = not record.flags & _INACTIVE
        if connection.active != active:
            self._count_as(connection, active=active)
        if self._reporting is not None and self._reporting.when == "established":
            connection.report_at = now
        return None

    def _server_for(self, record: ConnectionRecord) -> RealServer | None:
        family = 4 if len(record.virtual) == 4 else 6
        service = self._by_key.get(
            bytes((family, record.protocol)) + record.virtual + record.virtual_port.to_bytes(2)
        )
        if service is None:
            return None
        return service.server(record.server, record.server_port)

    def forget(self, key: bytes) -> None:
        """Remove a connection that its source has ended."""
        connection = self.table.inbound.get(key)
        if connection is not None:
            self._end(connection)
            self.untold.pop(key, None)

    def begin_snapshot(self) -> int:
        """A new generation: what `apply` names from now on belongs to it."""
        self._generation += 1
        return self._generation

    def sweep(self, generation: int, addresses: Collection[bytes]) -> int:
        """Forget connections of these addresses that a snapshot has not named."""
        unconfirmed = [
            connection.key
            for connection in self.table.inbound.values()
            if connection.generation < generation and connection.virtual[0] in addresses
        ]
        for key in unconfirmed:
            self.forget(key)
        return len(unconfirmed)
