"""Show captured frames to the real director, and say what it does with each.

The director does not know that it is in a replay: it gets frames, times from the capture,
and a network (`lvsha.surroundings`). Each frame becomes one `Decision` and the frames that
would have left. Files are not read or written here; that is `lvsha.replay`.

The clock is that of the capture, in seconds after its first frame, and never goes back: a
frame that is older than the one before it counts as one of the same moment. Between frames
the director's housekeeping is done for every second that has passed; in a long silence
ever more rarely, at each hundredth of it, so that a gap of years takes no time either.

What always holds: nothing is kept of a frame, so memory does not grow with a capture;
the same files give the same output, byte for byte, because the dice have a fixed seed.
"""

import contextlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

from lvsha.build import build_director
from lvsha.capture import Captured, LinkType
from lvsha.config import Pair
from lvsha.datapath import icmp_errors, segmentation
from lvsha.datapath.connections import Connection, ConnectionTable, reversed_key
from lvsha.datapath.flow import (
    ETHERNET_BYTES,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAME_MAX,
    L2,
    L3,
    Frame,
)
from lvsha.datapath.network import Outgoing
from lvsha.datapath.reasons import Reason
from lvsha.datapath.services import RealServer, ToClient, ToServer
from lvsha.datapath.verdicts import Accept, Drop, ErrorToClient, ErrorToServer, TunnelError, Verdict
from lvsha.errors import WireError
from lvsha.model import ForwardMethod, Protocol, format_endpoint
from lvsha.surroundings import Surroundings, made_up_mac
from lvsha.wire import vnet

NOT_FOR_A_DIRECTOR: Final = "not for a director"
"""The verdict on what is neither TCP, UDP, SCTP, ICMP, AH nor ESP."""
OWN_FRAME: Final = "sent by this machine"
"""The verdict on a frame that comes from one of the hardware addresses in ``[replay]``."""
FRAGMENT_KEPT: Final = "kept until its datagram is whole"

CLOCK_MAX: Final = 2.0**40
"""Where the clock stops: after 35,000 years, where it still has parts of a millisecond."""

_SEED: Final = 0
_NANOSECONDS: Final = 1_000_000_000
_STEP: Final = 1.0
_STEP_PART: Final = 0.01
_ETHERTYPES: Final = {4: ETHERTYPE_IPV4.to_bytes(2), 6: ETHERTYPE_IPV6.to_bytes(2)}
_STRANGER: Final = made_up_mac(bytes(4))
"""The sender's hardware address of a frame that was captured without one."""
_CHECKSUM_PROTOCOLS: Final = {16: Protocol.TCP, 6: Protocol.UDP}
"""Which transport has its checksum so many bytes behind its start."""


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """A connection at one moment.

    Attributes:
        state: as listings name it.
        timeout: what the state gives it, in seconds.
        expires_in: what is left of that.
    """

    state: str
    timeout: float
    expires_in: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one frame.

    Attributes:
        number: of the frame in the capture, from 1.
        time: on the director's clock: seconds after the first frame.
        captured: the capture's own time, in seconds since 1970 with nine decimals.
        interface: where the frame came in.
        length: of the frame on the wire, in bytes.
        cut: the capture has only a part of it.
        verdict: what the director decided.
        reason: why it, or something that had waited, was dropped: number and name.
        service, server: by name, and by address and port.
        before, after: its connection.
        out: interface and length of every frame that left.
    """

    number: int
    time: float
    captured: str | None
    interface: str
    length: int
    cut: bool
    verdict: str
    reason: dict[str, int | str] | None
    service: str | None
    server: str | None
    before: ConnectionView | None
    after: ConnectionView | None
    out: tuple[dict[str, int | str], ...]

    def json(self) -> str:
        """The decision as one line of JSON."""
        return json.dumps({name: getattr(self, name) for name in _NAMES}, default=asdict)


_NAMES: Final = tuple(each.name for each in fields(Decision))


class Rerun:
    """A director that is shown captured frames one by one.

    Args:
        pair: the pair file.
        node: which of its nodes the director is.

    Raises:
        ConfigError: the director refuses what the pair file says.
    """

    def __init__(self, pair: Pair, node: str) -> None:
        # Nobody listens to what this director would tell others.
        alone = pair.model_copy(update={"sync": None})
        self.director = build_director(alone, random.Random(_SEED))  # noqa: S311
        self._surroundings = Surroundings(self.director, pair, node)
        self._frame = Frame()
        self._number = 0
        self._first: int | None = None
        self.clock = 0.0

    def show(self, captured: Captured) -> tuple[Decision, list[tuple[str, bytes]]]:
        """Let the director decide about a frame.

        Returns:
            The decision, and what left: the interface's name and an Ethernet frame each.
        """
        self._number += 1
        self._pass_time(self._moment(captured))
        arrival = self._arrival(captured)
        if captured.interface.link_type is LinkType.ETHERNET:
            if captured.data[6:12] in self._surroundings.macs:
                return self._decision(captured, arrival, OWN_FRAME), []
            data = captured.data
        else:
            version = captured.data[0] >> 4 if captured.data else 0
            head = self._surroundings.mac(arrival) + _STRANGER + _ETHERTYPES.get(version, bytes(2))
            data = head + captured.data
        return self._decide(captured, arrival, data[:FRAME_MAX])

    def _moment(self, captured: Captured) -> float:
        """A frame's time on the director's clock."""
        if captured.time is None:
            return self.clock
        if self._first is None:
            self._first = captured.time
        passed = (captured.time - self._first) / _NANOSECONDS
        return max(self.clock, min(passed, CLOCK_MAX))

    def _pass_time(self, now: float) -> None:
        began = self.clock
        while self.clock < now:
            step = max(_STEP, (self.clock - began) * _STEP_PART)
            self.clock = min(now, self.clock + step)
            self._housekeep()
        self._housekeep()

    def _housekeep(self) -> None:
        while self.director.housekeep(self.clock):
            pass

    def _arrival(self, captured: Captured) -> str:
        """The interface that a frame came in on."""
        known = self._surroundings
        interface = captured.interface
        if interface.link_type is LinkType.ETHERNET and captured.data[:6] in known.macs:
            return known.macs[captured.data[:6]]
        if interface.name in known.links:
            return interface.name
        names = list(known.links)
        return names[interface.number] if interface.number < len(names) else names[0]

    def _decide(
        self, captured: Captured, arrival: str, data: bytes
    ) -> tuple[Decision, list[tuple[str, bytes]]]:
        director, frame, now = self.director, self._frame, self.clock
        frame.load(data)
        received = L2 + len(data)
        if frame.read(received) is None and frame.protocol == Protocol.TCP and not frame.fragment:
            self._mark_as_merged(self._surroundings.mtu(arrival))
        connection = self._connection(received)
        before = None if connection is None else _view(connection, now)
        drops = dict(director.drops)
        verdict = director.decide(frame, received, now)
        waiting = frame.fragment
        bound = self._bound(verdict) or connection
        left = self._finished(director.carry_out(frame, verdict, now))
        left += self._finished(self._surroundings.answer())
        name = _name(verdict)
        if isinstance(verdict, Accept) and waiting:
            name = FRAGMENT_KEPT
        elif isinstance(verdict, Accept) and not frame.protocol:
            name = NOT_FOR_A_DIRECTOR
        decision = self._decision(
            captured,
            arrival,
            name,
            reason=_newest(director.drops, drops),
            service=self._refusing(verdict),
            server=_server(verdict) or (None if bound is None else bound.server),
            before=before,
            after=_view(bound, now) if bound is not None and bound.second >= 0 else None,
            left=left,
        )
        return decision, left

    def _mark_as_merged(self, mtu: int) -> None:
        """Make a super-frame of a segment that no link of this MTU has carried.

        Network cards and kernels merge segments before a capture sees them. A running
        director is told of that, with the size of the segments; a capture does not say it.
        """
        frame = self._frame
        headers = frame.l4 - L3 + (frame.buffer[frame.l4 + 12] >> 4) * 4
        if frame.length <= mtu or headers >= mtu:
            return
        frame.buffer[:L2] = vnet.emit(
            vnet.VnetHeader(
                vnet.NEEDS_CHECKSUM,
                vnet.GSO_TCPV4 if frame.family == 4 else vnet.GSO_TCPV6,
                ETHERNET_BYTES + headers,
                mtu - headers,
                frame.l4 - L2,
                16,
            )
        )

    def _connection(self, received: int) -> Connection | None:
        """The connection that the frame in the buffer belongs to."""
        frame, table = self._frame, self.director.registry.table
        if frame.read(received) is not None or not frame.protocol or frame.fragment:
            return None
        key: bytes | None = frame.key
        if not key:
            key = icmp_errors.related_key(frame) if icmp_errors.is_error(frame) else None
        return _look_up(table, key) if key else None

    def _bound(self, verdict: Verdict) -> Connection | None:
        """The connection that a frame belongs to after the decision about it."""
        if isinstance(verdict, ErrorToServer | ErrorToClient | TunnelError):
            return verdict.connection
        frame, table = self._frame, self.director.registry.table
        if frame.fragment or not frame.protocol or not frame.key:
            return None
        return _look_up(table, frame.key)

    def _refusing(self, verdict: Verdict) -> str | None:
        """The service that a dropped packet was for."""
        frame, director = self._frame, self.director
        if not isinstance(verdict, Drop) or frame.fragment or not frame.protocol or not frame.key:
            return None
        service = director.services.find(frame.key, director.marks.of(frame.key))
        return None if service is None else service.name

    def _finished(self, sent: Iterable[Outgoing]) -> list[tuple[str, bytes]]:
        """Frames as a card would put them on the wire, each with its interface's name."""
        return [
            (self._surroundings.names[link], frame)
            for link, framed in sent
            for frame in finish(bytes(framed))
        ]

    def _decision(
        self,
        captured: Captured,
        arrival: str,
        verdict: str,
        *,
        reason: Reason | None = None,
        service: str | None = None,
        server: RealServer | None = None,
        before: ConnectionView | None = None,
        after: ConnectionView | None = None,
        left: Iterable[tuple[str, bytes]] = (),
    ) -> Decision:
        return Decision(
            number=self._number,
            time=self.clock,
            captured=None if captured.time is None else _seconds(captured.time),
            interface=arrival,
            length=captured.length,
            cut=captured.length > len(captured.data),
            verdict=verdict,
            reason=None
            if reason is None
            else {"number": reason.value, "name": reason.name.lower()},
            service=service if server is None else server.service.name,
            server=None if server is None else format_endpoint(server.address, server.port),
            before=before,
            after=after,
            out=tuple({"interface": name, "length": len(frame)} for name, frame in left),
        )

    @property
    def wall_time(self) -> int:
        """The clock as a capture has it, in nanoseconds since 1970."""
        return (self._first or 0) + round(self.clock * _NANOSECONDS)


def finish(framed: bytes) -> Iterator[bytes]:
    """The Ethernet frames that a card makes of one with a virtio header.

    Nothing comes of one whose header contradicts it, as nothing comes of it in a card.
    """
    header = vnet.parse(framed)
    if not header.gso_type and not header.flags & vnet.NEEDS_CHECKSUM:
        yield framed[L2:]
        return
    l4 = header.checksum_start - ETHERNET_BYTES
    protocol = _CHECKSUM_PROTOCOLS.get(header.checksum_offset)
    if protocol is None:
        return
    with contextlib.suppress(WireError):
        for packet in segmentation.split(framed[L3:], header, l4, protocol):
            yield framed[L2:L3] + packet


def _look_up(table: ConnectionTable, key: bytes) -> Connection | None:
    """The connection that a packet with this key belongs to, as the director finds it."""
    connection = table.find(key) or table.find_reply(key)
    if connection is None and table.unknown_ports:
        connection = table.find(key[:-4] + bytes(2) + key[-2:])
    if connection is None:
        connection = table.find(reversed_key(key))
        if connection is not None and connection.binding.method is ForwardMethod.NAT:
            return None
    return connection


def _newest(drops: Mapping[Reason, int], before: Mapping[Reason, int]) -> Reason | None:
    """What was counted since."""
    return next((reason for reason, n in drops.items() if n != before.get(reason, 0)), None)


def _reason(reason: Reason | None) -> dict[str, int | str] | None:
    return None if reason is None else {"number": reason.value, "name": reason.name.lower()}


def _name(verdict: Verdict) -> str:
    """A verdict in words: ``to server`` for `ToServer`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(verdict).__name__).lower()


def _server(verdict: Verdict) -> RealServer | None:
    return verdict.server if isinstance(verdict, ToServer | ToClient) else None


def _view(connection: Connection, now: float) -> ConnectionView:
    return ConnectionView(
        connection.machine.name_of(connection.state),
        connection.timeout,
        round(connection.expires - now, 9),
    )


def _seconds(time: int) -> str:
    """Nanoseconds as seconds, exactly."""
    sign, (whole, rest) = "-" if time < 0 else "", divmod(abs(time), _NANOSECONDS)
    return f"{sign}{whole}.{rest:09}"
