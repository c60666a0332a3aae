"""One link, observed: sync messages and VRRP advertisements, out of its IP packets.

It takes whole packets as they pass on the link, whoever sent them, and passes what concerns it
on. Packets that it cannot read are counted and nothing else.

Times are seconds on the caller's clock.
"""

from collections.abc import Mapping
from typing import Final

from lvsha.counters import Counters
from lvsha.datapath.state_machines import StateMachine
from lvsha.errors import WireError
from lvsha.model import Protocol
from lvsha.observe.routers import VirtualRouters
from lvsha.observe.stream import SyncStream
from lvsha.wire import ipv4, ipv6

_UDP_BYTES: Final = 8


class Observation:
    """What was seen on a link.

    Args:
        groups: the multicast addresses of the sync.
        ports: its UDP ports.
        machines: the state machine of each protocol.
        now: when it begins.

    Attributes:
        stream: the sync.
        routers: the virtual routers.
        counters: packets by kind, and those that could not be read.
    """

    def __init__(
        self,
        groups: frozenset[bytes],
        ports: range,
        machines: Mapping[int, StateMachine],
        now: float,
    ) -> None:
        self.stream = SyncStream(machines)
        self.routers = VirtualRouters()
        self.counters = Counters()
        self._groups = groups
        self._ports = ports
        self._began = now

    def receive(self, packet: bytes, now: float) -> None:
        """Take note of a packet, from its IP header on."""
        try:
            if packet[:1] and packet[0] >> 4 == 6:
                self._receive_ipv6(packet, now)
            else:
                self._receive_ipv4(packet, now)
        except WireError:
            self.counters.add("unreadable")

    def _receive_ipv4(self, packet: bytes, now: float) -> None:
        header = ipv4.parse(packet)
        if header.flags & (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK):
            self.counters.add("fragments")
            return
        self._dispatch(
            header.protocol,
            packet[header.header_bytes : header.total_length],
            header.source,
            header.destination,
            header.ttl,
            now,
        )

    def _receive_ipv6(self, packet: bytes, now: float) -> None:
        header = ipv6.parse(packet)
        end = ipv6.HEADER_BYTES + header.payload_length
        found = ipv6.upper_layer(packet, 0, min(end, len(packet)))
        if found is None or found[0] == ipv6.FRAGMENT:
            self.counters.add("fragments" if found else "unreadable")
            return
        protocol, at = found
        self._dispatch(
            protocol,
            packet[at:end],
            header.source,
            header.destination,
            header.hop_limit,
            now,
        )

    def _dispatch(
        self,
        protocol: int,
        payload: bytes,
        source: bytes,
        destination: bytes,
        hop_limit: int,
        now: float,
    ) -> None:
        if protocol == Protocol.VRRP:
            self.counters.add("advertisements")
            self.routers.receive(payload, source, destination, hop_limit, now)
        elif protocol == Protocol.UDP and destination in self._groups:
            port = int.from_bytes(payload[2:4])
            if len(payload) >= _UDP_BYTES and port in self._ports:
                self.counters.add("sync_datagrams")
                length = int.from_bytes(payload[4:6])
                self.stream.receive(payload[_UDP_BYTES:length], source, port, now)

    def status(self, now: float) -> dict[str, object]:
        """All that is known, as JSON values; rates are since the last call."""
        return {
            "seconds": now - self._began,
            "findings": self.routers.findings(now) + self.stream.findings(now),
            "vrrp": self.routers.status(now),
            "sync": self.stream.status(now),
            "counters": self.counters.snapshot(),
        }
