"""An FTP control connection through a director, with both of its ends."""

from dataclasses import dataclass

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from lvsha.datapath.connections import Connection
from lvsha.datapath.memories import FtpDialogue
from lvsha.datapath.service_policy import ESTABLISHED
from lvsha.model import ForwardMethod, parse_address
from tests.laboratory import C4, NAT, S4, V4, Laboratory, Left
from tests.packets import ACK, FIN, PSH, SYN
from tests.reader import dissect, faults

PORT = 40000
WRAP = 2**32


@dataclass
class End:
    """What one end of the control connection has sent and received, as it counts itself."""

    sent: int
    seen: int = 0
    text: bytes = b""


class Session:
    """A control connection between a client and a server that count their own bytes."""

    def __init__(
        self,
        client: str = C4,
        vip: str = V4,
        server: str = S4,
        *,
        method: ForwardMethod = NAT,
        first: int = 1000,
        port: int = 21,
    ) -> None:
        self.names = (client, vip, server)
        self.port, self.method = port, method
        self.laboratory = self.director()
        (service,) = self.laboratory.director.services
        (self.server,) = service.servers
        self.client_end, self.server_end = End(first), End(first)

    def director(self) -> Laboratory:
        """A director of such sessions."""
        _, vip, server = self.names
        laboratory = Laboratory(vips=[vip], reporting=ESTABLISHED)
        laboratory.server(laboratory.service(vip, 21), server, self.port, method=self.method)
        return laboratory

    @property
    def table(self) -> list[Connection]:
        return list(self.laboratory.director.registry.table.connections())

    @property
    def data(self) -> Connection:
        (data,) = [each for each in self.table if each.parent is not None]
        return data

    @property
    def control(self) -> Connection:
        (control,) = [each for each in self.table if isinstance(each.dialogue, FtpDialogue)]
        return control

    def segment(
        self,
        *,
        from_client: bool,
        flags: int,
        payload: bytes = b"",
        sequence: int | None = None,
        options: list[tuple[str, object]] | None = None,
    ) -> bytes:
        client, vip, server = self.names
        end = self.client_end if from_client else self.server_end
        here, there = (client, vip) if from_client else (server, client)
        layer = (IPv6 if ":" in vip else IP)(src=here, dst=there)
        if ":" not in vip:
            layer.flags = "DF"
        tcp = TCP(
            sport=PORT if from_client else self.port,
            dport=21 if from_client else PORT,
            flags=flags,
            seq=(end.sent if sequence is None else sequence) % WRAP,
            ack=end.seen % WRAP,
            options=options or [],
        )
        return bytes(layer / tcp / payload)

    def send(
        self, *, from_client: bool, flags: int = ACK | PSH, payload: bytes = b"", lost: bool = False
    ) -> Left:
        """Send what comes next; it must arrive as what comes next, unless it is lost."""
        here, there = self.client_end, self.server_end
        if not from_client:
            here, there = there, here
        packet = self.segment(from_client=from_client, flags=flags, payload=payload)
        (left,) = self.laboratory.send("client" if from_client else "server", packet)
        if not lost:
            self._arrive(left, there)
        here.sent += len(payload) + bool(flags & (SYN | FIN))
        return left

    def _arrive(self, left: Left, there: End) -> None:
        assert faults(left.packet) == []
        read = dissect(left.packet)[TCP]
        payload = text_of(left)
        if not read.flags.S:
            assert read.seq == there.seen % WRAP, "it begins where the last one ended"
        else:
            there.seen = read.seq
        if read.flags.A:
            assert read.ack == there.sent % WRAP, "all is confirmed as it was sent"
        there.seen += len(payload) + bool(read.flags.S) + bool(read.flags.F)
        there.text += payload

    def begin(self) -> "Session":
        self.send(from_client=True, flags=SYN)
        self.send(from_client=False, flags=SYN | ACK)
        self.send(from_client=True, flags=ACK)
        self.say(b"220 ready\r\n")
        return self

    def ask(self, text: bytes, *, lost: bool = False) -> Left:
        """The client writes, the server confirms."""
        left = self.send(from_client=True, payload=text, lost=lost)
        if not lost:
            self.send(from_client=False, flags=ACK)
        return left

    def say(self, text: bytes, *, lost: bool = False) -> Left:
        """The server writes, the client confirms."""
        left = self.send(from_client=False, payload=text, lost=lost)
        if not lost:
            self.send(from_client=True, flags=ACK)
        return left


def _payload_bytes(packet: bytes) -> int:
    l4 = 40 if packet[0] >> 4 == 6 else 20
    return len(packet) - l4 - (packet[l4 + 12] >> 4) * 4


def text_of(left: Left) -> bytes:
    return left.packet[len(left.packet) - _payload_bytes(left.packet) :]


def numbers(address: str, port: int) -> bytes:
    return b",".join(b"%d" % n for n in (*parse_address(address), *port.to_bytes(2)))


def pasv(address: str = S4, port: int = 5000) -> bytes:
    return b"227 Entering Passive Mode (" + numbers(address, port) + b").\r\n"
