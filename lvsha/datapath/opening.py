"""Open connections: which service a packet is for, which real server gets it, and whether.

The steps are the kernel's: find the service; let the defence drop what it must; persistence;
the scheduler; and where no server can be had, what is left to do with the packet. A packet in
mid-stream opens none; what becomes of it its service says (`Unknown`).

What always holds: a packet that is refused has opened nothing. New connections are opened
only for addresses that this node holds; what of them has moved elsewhere is in `elsewhere`.
"""

from typing import Final

from lvsha.datapath import payload, resets, sip
from lvsha.datapath.connections import Connection
from lvsha.datapath.defence import Defence
from lvsha.datapath.flow import Frame
from lvsha.datapath.ftp import FTP_DATA_PORT, FTP_PORT
from lvsha.datapath.marks import Marks
from lvsha.datapath.network import Network
from lvsha.datapath.questions import Questions
from lvsha.datapath.reasons import Reason
from lvsha.datapath.registry import Registry
from lvsha.datapath.service_policy import Unknown
from lvsha.datapath.service_table import ServiceTable
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.datapath.template_keys import bare_template_key
from lvsha.datapath.verdicts import ACCEPT, Accept, Drop, Wait
from lvsha.model import ConnectionFlag, IPv4_BYTES, Protocol, template_key
from lvsha.settings import Settings
from lvsha.wire import icmp

_ONE_PACKET: Final = int(ConnectionFlag.ONE_PACKET)
_UDP: Final = int(Protocol.UDP)
_WITH_TEMPLATE: Final = 2
"""What a connection and its template take in the table."""

NO_SERVICE: Final = None
"""What `Opener.open` returns for a packet of no service."""


class Opener:
    """Opens connections for packets that belong to none.

    Attributes:
        elsewhere: virtual addresses that another node holds.
        settings: those in force.
    """

    def __init__(
        self,
        registry: Registry,
        services: ServiceTable,
        marks: Marks,
        network: Network,
        defence: Defence,
        questions: Questions,
        settings: Settings,
    ) -> None:
        self.elsewhere: set[bytes] = set()
        self.settings = settings
        self._registry = registry
        self._services = services
        self._marks = marks
        self._network = network
        self._defence = defence
        self._questions = questions

    def service_of(self, key: bytes) -> VirtualService | None:
        """The service that a packet with this key is for."""
        marks = self._marks
        return self._services.find(key, marks.of(key) if marks.rules else 0)

    def open(
        self, key: bytes, frame: Frame, now: float, *, quoted: bool = False
    ) -> Connection | Drop | Accept | Wait | None:
        """Open a connection for a packet.

        Args:
            key: of the request.
            frame: it, or an ICMP error that quotes its inverse.
            now: the clock.
            quoted: which of the two; of a quoted packet only addresses and ports are known.

        Returns:
            The connection: with one-packet scheduling one that is in no table; why none is
            opened; or None where the packet is for no service.
        """
        service = self.service_of(key)
        if service is None:
            return NO_SERVICE
        size = (len(key) - 6) // 2
        virtual, port = key[2 + size : 2 + 2 * size], int.from_bytes(key[-2:])
        if not quoted and not self._registry.machines[key[1]].may_open[frame.event]:
            # What may be FTP data, and is not, is of another program on this host.
            ftp_data = service.port == FTP_PORT != port and not service.options.persistence
            if ftp_data:
                return ACCEPT
            refusal = self._in_mid_stream(service, virtual, frame, now)
            if refusal is not None:
                return refusal
        if virtual in self.elsewhere:
            return Drop(Reason.NOT_MASTER)
        if self._registry.table.full:
            return Drop(Reason.TABLE_FULL)
        if self._defence.drops_packet():
            return Drop(Reason.DEFENCE)
        if int.from_bytes(key[-4:-2]) == FTP_DATA_PORT:
            return Drop(Reason.FTP_DATA)
        if service.options.persistence:
            return self.open_persistent(service, key, frame, now, quoted=quoted)
        if not service.identity.mark and port != service.port:
            return self._leave(service, key, now, quoted=quoted)
        server = None if service.scheduler is None else service.scheduler.schedule(key, now)
        if server is None:
            return self._leave(service, key, now, quoted=quoted)
        return self._bind(service, server, server.port or port, key, now)

    def _in_mid_stream(
        self, service: VirtualService, virtual: bytes, frame: Frame, now: float
    ) -> Drop | Accept | Wait | None:
        """What becomes of a packet that may open no connection; None where it opens one yet.

        While the address is moving nobody is told that there is no connection: its record
        may be a moment late, and the sender repeats the packet.
        """
        registry = self._registry
        unknown = service.policy.unknown
        if virtual in self.elsewhere:
            return Drop(Reason.NO_CONNECTION)
        if unknown is Unknown.ADOPT:
            adopted = registry.machines[frame.key[1]].sloppy[frame.event]
            return None if adopted else Drop(Reason.NO_CONNECTION)
        tally = registry.tallies.get(virtual) if unknown is Unknown.ASK else None
        if tally is not None:
            return self._questions.ask(frame, tally.sync_id, now)
        if virtual in registry.in_transition:
            return Drop(Reason.NO_CONNECTION)
        return ACCEPT if unknown is Unknown.KERNEL else resets.refuse(frame)

    def open_persistent(
        self,
        service: VirtualService,
        key: bytes,
        frame: Frame,
        now: float,
        *,
        server: RealServer | None = None,
        quoted: bool = False,
    ) -> Connection | Drop | Accept:
        """Open a connection to the server that the client's template names.

        Args:
            service: a persistent one, or one whose engine lets a server speak first.
            key: of the request.
            frame: as for `open`.
            now: the clock.
            server: which it must be, because it is the server that speaks first; a template
                that names another is replaced.
            quoted: as for `open`.
        """
        found = b""
        if service.options.engine and service.options.persistence:
            call_id = self._call_id(key, frame, quoted=quoted)
            if call_id is None:
                return Drop(Reason.NO_CALL_ID)
            found = call_id
        registry = self._registry
        if server is not None:
            # The client may have a connection to another server; the newer one is found.
            older = registry.table.find(key)
            if older is not None:
                registry.end(older)
            if not service.options.persistence:
                return self._bind(service, server, server.port, key, now)
        port = int.from_bytes(key[-2:])
        at_own_port = port == service.port
        bare = bare_template_key(service, key)
        template = registry.table.template(template_key(bare, found))
        if template is not None and not self._is_good(template, server):
            registry.poison(template)
            template = None
        if template is None:
            if server is None and service.scheduler is not None:
                server = service.scheduler.schedule(key, now)
            if server is None:
                return self._leave(service, key, now, quoted=quoted)
            if registry.table.room < _WITH_TEMPLATE:
                return Drop(Reason.TABLE_FULL)
            size = (len(key) - 6) // 2
            named_port = server.port if at_own_port and port != FTP_PORT else 0
            binding = server.bind(
                bare[2 + size : 2 + 2 * size],
                int.from_bytes(bare[-2:]),
                named_port,
            )
            timeout = (
                service.options.persistence
            )  # the same object for all, and not a float for each
            template = registry.open_template(
                bare, found, binding, timeout, now, mark=service.identity.mark
            )
        server = template.server
        real_port = server.port if at_own_port and server.port else port
        connection = self._bind(service, server, real_port, key, now, parent=template)
        registry.join(template, connection, now)
        return connection

    def _is_good(self, template: Connection, server: RealServer | None) -> bool:
        """Whether a template may still decide."""
        named = template.server
        if not named.available or (server is not None and named is not server):
            return False
        return bool(named.weight) or not self.settings.expire_quiescent_template

    def _call_id(self, key: bytes, frame: Frame, *, quoted: bool) -> bytes | None:
        if key[1] != _UDP or quoted:
            return None
        return sip.call_id(payload.read(frame))

    def _bind(
        self,
        service: VirtualService,
        server: RealServer,
        real_port: int,
        key: bytes,
        now: float,
        parent: Connection | None = None,
    ) -> Connection:
        size = (len(key) - 6) // 2
        virtual, port = key[2 + size : 2 + 2 * size], int.from_bytes(key[-2:])
        binding = server.bind(virtual, port, real_port)
        server.statistics.connections += 1
        if service.options.one_packet and key[1] == _UDP:
            return self._registry.make(key, binding, _ONE_PACKET)
        return self._registry.open(key, binding, now, parent=parent)

    def _leave(
        self, service: VirtualService, key: bytes, now: float, *, quoted: bool
    ) -> Connection | Drop | Accept:
        """What becomes of a packet that no real server can be found for."""
        size = (len(key) - 6) // 2
        destination, port = key[2 + size : 2 + 2 * size], int.from_bytes(key[-2:])
        if (
            self.settings.cache_bypass
            and service.identity.mark
            and not quoted
            and self._may_be_bypassed(destination)
        ):
            binding = service.bypass_server().bind(b"", 0, 0)
            if service.options.one_packet and key[1] == _UDP:
                return self._registry.make(key, binding, _ONE_PACKET)
            return self._registry.open(key, binding, now)
        if service.port == FTP_PORT and port != FTP_PORT:
            return ACCEPT
        return Drop(Reason.NO_SERVER, None if quoted else icmp.PORT_UNREACHABLE)

    def _may_be_bypassed(self, destination: bytes) -> bool:
        """Whether a packet could go on to where it was sent; of IPv6 the kernel asks less."""
        if not icmp.may_be_told(destination):
            return False
        return len(destination) != IPv4_BYTES or not self._network.is_local(destination)
