"""Decide what becomes of each frame: the heart of the datapath.

A `Director` is a pure function of its configuration, the frames and the times it is given:
it reads no clock and does no I/O, so that a capture can be replayed through it. The order
of its steps is that of the kernel's IPVS: find the connection; else the service; choose a
real server; create the connection; count; step the protocol's state; forward; report.

What always holds:

* A frame that is dropped as malformed has changed nothing.
* Only the registry changes a connection. What others must know is reported as
  `ConnectionChange` values; see `lvsha.datapath.registry`.
* New connections are opened only for addresses that this node holds. Connections that
  exist are forwarded in any case, so that a node that has just lost an address still
  carries the packets that were on their way to it.

Times are seconds on the caller's clock.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from lvsha.datapath import icmp_errors, resets
from lvsha.datapath.connections import Connection, reversed_key
from lvsha.datapath.defence import Defence
from lvsha.datapath.destinations import Destinations
from lvsha.datapath.flow import Frame
from lvsha.datapath.ftp_control import FtpControl
from lvsha.datapath.housekeeping import Housekeeping
from lvsha.datapath.icmp_errors import QuotedTunnel
from lvsha.datapath.marks import Marks
from lvsha.datapath.memories import FtpDialogue
from lvsha.datapath.network import Network, NetworkChange, Outgoing
from lvsha.datapath.opening import NO_SERVICE, Opener
from lvsha.datapath.questions import Held, Questions
from lvsha.datapath.reasons import Reason
from lvsha.datapath.reassembly import LIMIT_BYTES, Reassembler
from lvsha.datapath.registry import Registry
from lvsha.datapath.replication import Replication
from lvsha.datapath.scheduler_options import Dice
from lvsha.datapath.service_policy import NEVER, THRESHOLD, ServicePolicy, TellRule, Unknown
from lvsha.datapath.service_table import ServiceTable
from lvsha.datapath.services import RealServer
from lvsha.datapath.tcp_states import TcpState
from lvsha.datapath.transmit import ANSWERS_PER_SECOND, Transmitter
from lvsha.datapath.verdicts import (
    ACCEPT,
    Accept,
    Drop,
    ErrorToClient,
    ErrorToServer,
    TunnelError,
    Verdict,
    Wait,
)
from lvsha.datapath.ways import warm
from lvsha.model import ConnectionFlag, ForwardMethod, Protocol, connection_key
from lvsha.settings import REUSE_FIN_WAIT, Settings
from lvsha.wire import icmp

_NO_OUTPUT: Final = int(ConnectionFlag.NO_OUTPUT)
_NO_CLIENT_PORT: Final = int(ConnectionFlag.NO_CLIENT_PORT)
_TCP: Final = int(Protocol.TCP)
_UDP: Final = int(Protocol.UDP)
_SECURED: Final = frozenset({int(Protocol.AH), int(Protocol.ESP)})
_NO_PORT: Final = bytes(2)


class Director:
    """One director.

    Args:
        connections_max: the limit of the connection table.
        dice: for what is left to chance.
        reporting: when the backups are told of the connections of services that have no rule
            of their own; None where nobody has asked for any: nothing is told, but see
            `tell_others`.
        unknown: what becomes of packets in mid-stream for such services.
        settings: as they are at the start.
        answers_per_second: the limit of ICMP errors of its own.
        fragment_bytes: the limit of fragments that wait for the rest of their datagram.

    Attributes:
        services: the virtual services, and the commands that change them.
        marks: the rules for firewall marks.
        registry: the connections.
        replication: the connections as other directors see them.
        network: the mirror of the host's network.
        drops: frames dropped, by reason.
        carry_out: does what a verdict says; see `Transmitter.carry_out`.
        housekeep: does a part of what time brings; see `Housekeeping.run`.
        add_chore: has something done between frames; see `Housekeeping.add`.
        questions: what the peers are to be asked; see `Questions.unasked`.
        take_questions, deny: see `Questions.take` and `Questions.deny`.
    """

    def __init__(
        self,
        *,
        connections_max: int,
        dice: Dice,
        reporting: TellRule | None = None,
        unknown: Unknown = Unknown.RESET,
        settings: Settings | None = None,
        answers_per_second: float = ANSWERS_PER_SECOND,
        fragment_bytes: int = LIMIT_BYTES,
    ) -> None:
        settings = settings or Settings()
        self.drops: Counter[Reason] = Counter()
        self.network = Network(self.drops)
        policy = ServicePolicy(reporting or NEVER, unknown, asked=reporting is not None)
        self.services = ServiceTable(dice, policy)
        self.marks = Marks()
        self.registry = Registry(connections_max)
        self._teller = self.registry.teller
        self._table = self.registry.table
        self._inbound, self._outbound = self._table.inbound, self._table.outbound
        self._defence = Defence(self.registry, dice, settings)
        questions = self._questions = Questions(self.drops)
        self.questions = questions.unasked
        self.take_questions, self.deny = questions.take, questions.deny
        self._held_frame = Frame()
        self._opener = Opener(
            self.registry,
            self.services,
            self.marks,
            self.network,
            self._defence,
            questions,
            settings,
        )
        self.replication = Replication(
            self.registry, Destinations(self.services, self.marks), self.holds
        )
        self._ftp = FtpControl(self.registry)
        self._reassembler = Reassembler(self.drops, limit_bytes=fragment_bytes)
        self._transmitter = Transmitter(self.network, self.drops, answers_per_second)
        self.carry_out = self._transmitter.carry_out
        housekeeping = Housekeeping(
            self.registry,
            self.services,
            self.replication,
            self._defence,
            self._reassembler,
            questions,
        )
        self._housekeeping = housekeeping
        self.housekeep, self.add_chore = housekeeping.run, housekeeping.add
        self._align_waits = False
        self._backup_of: frozenset[bytes] = frozenset()
        self._shut: frozenset[bytes] = frozenset()
        self.configure(settings)

    # Configuration

    @property
    def settings(self) -> Settings:
        """The settings in force; the automatic modes of the defence as they are now."""
        return self._defence.settings

    def configure(self, settings: Settings) -> None:
        """Put settings into force."""
        self._defence.update(settings)
        self._teller.configure(settings)
        self._opener.settings = settings
        self._transmitter.pmtu_discovery = settings.pmtu_disc
        self.services.set_scheduling(
            lblc_expiration=settings.lblc_expiration,
            lblcr_expiration=settings.lblcr_expiration,
        )
        self.registry.machines[Protocol.SCTP].use(sloppy=settings.sloppy_sctp)
        self._housekeeping.configure(settings)
        self._shut = self._backup_of if settings.backup_only else frozenset()

    def set_timeouts(self, *, tcp: float = 0, tcp_fin: float = 0, udp: float = 0) -> None:
        """As ``ipvsadm --set``, 0 leaves a value as it is.

        Connections take the new ones over with their next packet.
        """
        machines = self.registry.machines
        machines[Protocol.TCP].set_timeouts({TcpState.ESTABLISHED: tcp, TcpState.FIN_WAIT: tcp_fin})
        machines[Protocol.UDP].set_timeouts({0: udp})

    @property
    def timeouts(self) -> tuple[float, float, float]:
        """What `set_timeouts` sets: tcp, tcp_fin, udp."""
        tcp = self.registry.machines[Protocol.TCP].timeouts
        udp = self.registry.machines[Protocol.UDP].timeouts
        return tcp[TcpState.ESTABLISHED], tcp[TcpState.FIN_WAIT], udp[0]

    def hold(self, address: bytes, *, held: bool, in_transition: bool = False) -> None:
        """Open new connections for a virtual address, or no longer.

        Args:
            address: one that a virtual router moves; others are always held.
            held: whether new connections are opened.
            in_transition: the address has moved to or from this node a moment ago, and some
                have not heard of it yet; each connection is then told from its first packet
                on, because its next one may go to the other node.
        """
        for addresses, inside in (
            (self._opener.elsewhere, not held),
            (self.registry.in_transition, in_transition),
        ):
            if inside:
                addresses.add(address)
            else:
                addresses.discard(address)

    def holds(self, address: bytes) -> bool:
        """Whether new connections for an address are opened."""
        return address not in self._opener.elsewhere

    def tell_others(self, *, told: bool) -> None:
        """Have connections told that belong to no virtual router, or no longer.

        Where nobody has asked for a rule, all are told by the kernel's meanwhile. Those that
        exist follow as a chore.
        """
        self.services.tell_unasked(THRESHOLD if told else NEVER)
        self.registry.tell_others(told=told)
        if not self._align_waits:
            self._align_waits = True
            self.add_chore(self._align())

    def _align(self) -> Iterator[None]:
        self._align_waits = False  # until it has begun, it is for later changes, too
        yield from self.registry.align()

    def back_up(self, addresses: frozenset[bytes]) -> None:
        """Say of which addresses this node is a backup; for ``backup_only``."""
        self._backup_of = addresses
        self._shut = addresses if self.settings.backup_only else frozenset()

    def learn(self, change: NetworkChange) -> list[Outgoing]:
        """Take over a change of the host's network; returns frames that waited for it."""
        return self.network.apply(change)

    def learn_memory(self, available_pages: int) -> None:
        """Take over how much memory is free, for the automatic modes of the defence."""
        self._defence.available_pages = available_pages

    def learn_clock(self, offset: float) -> None:
        """Take over how far universal time is ahead of the caller's clock, in seconds."""
        self._transmitter.clock_offset = offset

    def keep_ways_warm(self) -> None:
        """See to it that the ways of packets are known before a packet needs them."""
        for _ in self.warm_ways():
            pass

    def warm_ways(self) -> Iterator[None]:
        """What `keep_ways_warm` does, as a chore."""
        return warm(self.network, self.services, self.registry.table)

    # Frames

    def process(self, frame: Frame, received: int, now: float) -> Sequence[Outgoing]:
        """Read a frame of so many bytes, decide, and return what is to be sent for it."""
        return self.carry_out(frame, self.decide(frame, received, now), now)

    def decide(self, frame: Frame, received: int, now: float) -> Verdict:
        """Read a frame of so many bytes and decide; `carry_out` comes next."""
        reason = frame.read(received)
        if reason is None and frame.protocol and not frame.fragment:
            return self.handle(frame, now)
        return self._unusual(frame, reason, now)

    def _unusual(self, frame: Frame, reason: Reason | None, now: float) -> Verdict:
        """What is damaged, none of the director's business, or a fragment."""
        if reason is not None:
            return Drop(reason)
        if not frame.fragment:
            return ACCEPT
        whole = self._reassembler.add(frame.packet(), now)
        if whole is None:
            return ACCEPT
        if isinstance(whole, Reason):
            return Drop(whole)
        reason = frame.replace(whole)
        if reason is not None:
            return Drop(reason)
        return self._whole(frame, now)

    def _whole(self, frame: Frame, now: float) -> Verdict:
        """A packet that was put together; only now it shows what it carries."""
        return self.handle(frame, now) if frame.protocol and not frame.fragment else ACCEPT

    def handle(self, frame: Frame, now: float) -> Verdict:
        """Decide about a packet that `Frame.read` has found in order and whole."""
        key = frame.key
        if not key:
            return self._icmp(frame, now)
        connection = self._inbound[key[-3] + key[5]].get(key)
        if connection is None:
            connection = self._outbound[key[-1] + key[-5]].get(key)
            if connection is not None:
                return self._reply(connection, frame, now)
            return self._unknown(frame, now)
        if connection.machine.opens[frame.event] and self._gives_way(connection):
            return self._replace(connection, frame, now)
        return self._request(connection, frame, now)

    def _request(self, connection: Connection, frame: Frame, now: float) -> Verdict:
        """A packet from the client of a connection."""
        binding = connection.binding
        server = binding.server
        if self._shut and connection.virtual[0] in self._shut:
            return ACCEPT
        if not server.serving:
            if not self.services.serves(frame.family):
                return ACCEPT  # without a service there is no director
            if not self._opener.settings.expire_nodest_conn:
                return Drop(Reason.SERVER_GONE)
            return self._replace(connection, frame, now)
        machine = connection.machine
        state = connection.state
        transitions = machine.input_only if connection.flags & _NO_OUTPUT else machine.input
        new_state = transitions[frame.event][state]
        if new_state != state:
            self.registry.enter(connection, new_state, now)
        else:
            timeout = machine.timeouts[state]
            connection.expires = now + timeout
            if timeout != connection.timeout:
                self.registry.change_timeout(connection, timeout)
        statistics = server.statistics
        statistics.in_packets += 1
        statistics.in_bytes += frame.length
        connection.packets += 1
        if now >= connection.report_at:
            self._teller.requested(connection, now)
        if connection.dialogue is not None:
            return self._dialogue(connection, frame, now, to_server=True)
        return binding.to_server

    def _reply(self, connection: Connection, frame: Frame, now: float) -> Verdict:
        """A packet from the real server of a connection."""
        binding = connection.binding
        if frame.ttl <= 1:
            return binding.to_client or ACCEPT  # it goes no further, and so counts for nothing
        server = binding.server
        if not server.serving and not self.services.serves(frame.family):
            return ACCEPT  # without a service there is no director
        if connection.dialogue is not None:
            # Its text is read in the state before it, and its bytes are counted as they leave.
            verdict = self._dialogue(connection, frame, now, to_server=False)
            if isinstance(verdict, Drop):
                connection.expires = now + connection.timeout
                return verdict
        machine = connection.machine
        state = connection.state
        new_state = machine.output[frame.event][state]
        if new_state != state:
            self.registry.enter(connection, new_state, now)
        else:
            timeout = machine.timeouts[state]
            connection.expires = now + timeout
            if timeout != connection.timeout:
                self.registry.change_timeout(connection, timeout)
        if server.serving:
            statistics = server.statistics
            statistics.out_packets += 1
            statistics.out_bytes += frame.length
        parent = connection.parent
        if parent is not None and machine.established < 0:
            self.registry.assure(parent, now)
        return binding.to_client or ACCEPT

    def _replace(self, connection: Connection, frame: Frame, now: float) -> Verdict:
        """A packet that is of its connection no more.

        While another server is chosen the old connection still counts, as in the kernel,
        where its end comes with the next tick.
        """
        self.registry.take_out(connection)
        verdict = self._unknown(frame, now)
        self.registry.let_go(connection)
        return verdict

    def _gives_way(self, connection: Connection) -> bool:
        """Whether a packet that looks like the start of a connection replaces this one."""
        settings = self._opener.settings
        if self._shut and connection.virtual[0] in self._shut:
            return False
        server = connection.server
        if not server.serving and not self.services.serves(connection.key[0]):
            return False  # without a service there is no director
        if settings.expire_nodest_conn and not server.weight:
            return True
        mode = settings.conn_reuse_mode
        if not mode or connection.parent is not None:
            return False
        machine = connection.machine
        return machine.reusable[connection.state] or (
            bool(mode & REUSE_FIN_WAIT)
            and machine.protocol == _TCP
            and connection.state == TcpState.FIN_WAIT
            and bool(connection.flags & _NO_OUTPUT)
        )

    def _dialogue(
        self, connection: Connection, frame: Frame, now: float, *, to_server: bool
    ) -> Verdict:
        """A segment of an FTP control connection, which may have to be rewritten."""
        dialogue, binding = connection.dialogue, connection.binding
        if isinstance(dialogue, FtpDialogue):
            read = self._ftp.request if to_server else self._ftp.reply
            reason = read(connection, dialogue, frame, now)
            if reason is not None:
                return Drop(reason)
        return binding.to_server if to_server else binding.to_client or ACCEPT

    # Packets of no connection

    @property
    def asks(self) -> bool:
        """Whether packets wait for the peers' answer; `release` is then to be called often."""
        return bool(self._questions)

    def release(self, now: float) -> list[Outgoing]:
        """What is to be sent of packets that have waited for the peers' answer."""
        released: list[Outgoing] = []
        frame = self._held_frame
        for held in self._questions.answered(self._table.find):
            verdict = self._decide_again(held, frame, now)
            outgoing = self.carry_out(frame, verdict, now)
            released += [(link, bytes(data)) for link, data in outgoing]
        self._questions.expire(now)
        return released

    def _decide_again(self, held: Held, frame: Frame, now: float) -> Verdict:
        frame.read(held.lay(frame))
        if held.arrived is not None:
            frame.special, frame.arrived = True, held.arrived
        verdict = self.handle(frame, now)
        return Drop(Reason.UNANSWERED) if isinstance(verdict, Accept | Wait) else verdict

    def _unknown(self, frame: Frame, now: float) -> Verdict:
        """A packet that is of no connection as it stands."""
        key = frame.key
        table = self._table
        if table.unknown_ports:
            connection = table.find(key[:-4] + _NO_PORT + key[-2:])
            if connection is not None and connection.flags & _NO_CLIENT_PORT:
                self.registry.learn_client_port(connection, key[-4:-2])
                return self._request(connection, frame, now)
        connection = table.find(reversed_key(key))
        if connection is not None and connection.binding.method is not ForwardMethod.NAT:
            # A reply that passes here although it need not; now both halves are seen.
            if frame.ttl > 1 and (connection.server.serving or self.services.serves(frame.family)):
                connection.flags &= ~_NO_OUTPUT
            return self._reply(connection, frame, now)
        if frame.protocol in _SECURED:
            return ACCEPT
        opened = self._opener.open(key, frame, now)
        if isinstance(opened, Connection):
            return self._first(opened, frame, now)
        if opened is NO_SERVICE:
            return self._from_server(frame, now)
        return opened

    def _first(self, connection: Connection, frame: Frame, now: float) -> Verdict:
        """The packet that has opened a connection."""
        verdict = self._request(connection, frame, now)
        if connection.second < 0:
            self.registry.unbind(connection)  # one packet, and in no table
        return verdict

    def _from_server(self, frame: Frame, now: float) -> Verdict:
        """A packet of no connection and no service: perhaps a real server speaks first."""
        key = frame.key
        size = (len(key) - 6) // 2
        source, destination = key[2 : 2 + size], key[2 + size : 2 + 2 * size]
        server = self.services.nat_server(key[1], source, int.from_bytes(key[-4:-2]))
        if server is None or self.network.is_local(destination):
            return ACCEPT
        if key[1] == _UDP and server.service.options.engine and server.service.port and server.port:
            verdict = self._first_from_server(frame, server, now)
            if not isinstance(verdict, Drop) or verdict.reason is not Reason.NO_CALL_ID:
                return verdict
        if not self._opener.settings.nat_icmp_send or resets.is_reset(frame):
            return Drop(Reason.UNKNOWN_REPLY)
        if frame.ttl <= 1:  # as one that passes through, it comes no further
            return Drop(Reason.TTL_EXCEEDED, icmp.TIME_EXCEEDED)
        return Drop(Reason.UNKNOWN_REPLY, icmp.PORT_UNREACHABLE, passing=True)

    def _first_from_server(self, frame: Frame, server: RealServer, now: float) -> Verdict:
        """A datagram that opens a connection from the real server's side (SIP)."""
        key, service = frame.key, server.service
        size = (len(key) - 6) // 2
        client, port = key[2 + size : 2 + 2 * size], int.from_bytes(key[-2:])
        if service.address in self._opener.elsewhere:
            return Drop(Reason.NOT_MASTER)
        if self._table.full:
            return Drop(Reason.TABLE_FULL)
        request = connection_key(_UDP, client, port, service.address, service.port)
        opened = self._opener.open_persistent(service, request, frame, now, server=server)
        if not isinstance(opened, Connection):
            return opened
        verdict = self._reply(opened, frame, now)
        if opened.second < 0:
            self.registry.unbind(opened)
        return verdict

    # ICMP

    def _icmp(self, frame: Frame, now: float) -> Verdict:
        if not icmp_errors.is_error(frame):
            return ACCEPT
        quoted = icmp_errors.tunnelled(frame)
        if quoted is not None:
            verdict = self._tunnel_error(frame, quoted)
            if verdict is not None:
                return verdict
        key = icmp_errors.related_key(frame)
        if key is None:
            return ACCEPT
        connection = self._table.find(key)
        if connection is not None:
            if self._shut and connection.virtual[0] in self._shut:
                return ACCEPT
            return self._error(ErrorToServer(connection), frame)
        connection = self._table.find_reply(key)
        if connection is not None:
            return self._error(ErrorToClient(connection), frame)
        connection = self._table.find(reversed_key(key))
        if connection is not None and connection.binding.method is not ForwardMethod.NAT:
            self._count_error(connection, frame, to_server=False)  # it only passes by here
            return ACCEPT
        key = icmp_errors.quoted_key(frame) if self._opener.settings.schedule_icmp else None
        if key is None:
            return ACCEPT
        opened = self._opener.open(key, frame, now, quoted=True)
        if isinstance(opened, Connection):
            if opened.second < 0:
                self.registry.unbind(opened)
            return self._error(ErrorToServer(opened), frame)
        return ACCEPT if opened is NO_SERVICE else opened

    def _error(self, verdict: ErrorToServer | ErrorToClient, frame: Frame) -> Verdict:
        """An ICMP error about a packet of a connection."""
        connection = verdict.connection
        if not connection.server.serving and not self.services.serves(frame.family):
            return ACCEPT  # without a service there is no director
        to_server = isinstance(verdict, ErrorToServer)
        # What is not translated the kernel verifies of IPv4 only.
        verified = connection.binding.method is ForwardMethod.NAT or frame.family == 4
        if verified and not icmp_errors.checksum_is_right(frame):
            return Drop(Reason.ICMP_CHECKSUM)
        self._count_error(connection, frame, to_server=to_server)
        return verdict

    def _count_error(self, connection: Connection, frame: Frame, *, to_server: bool) -> None:
        """Count an ICMP error as a packet of the connection that it is about."""
        if to_server and connection.binding.method is not ForwardMethod.NAT:
            connection.packets += 1
        if to_server or frame.ttl > 1:  # else it goes no further, and so counts for nothing
            connection.server.count(frame.length, to_server=to_server)

    def _tunnel_error(self, frame: Frame, quoted: QuotedTunnel) -> Verdict | None:
        """An error about a tunnel packet; None if it is none that this director sent."""
        if not self.services.has_tunnel(quoted.destination, quoted.type, quoted.port):
            return None
        key = icmp_errors.original_key(frame, quoted)
        connection = self._table.find(key) if key is not None else None
        if (
            connection is None
            or connection.binding.method is not ForwardMethod.TUNNEL
            or connection.server.address != quoted.destination
            or not self.network.is_local(quoted.source)
        ):
            return None
        if not icmp_errors.checksum_is_right(frame):
            return Drop(Reason.ICMP_CHECKSUM)
        return TunnelError(connection, quoted)
