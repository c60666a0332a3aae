"""Conversations in order: what clients, real servers and routers send when nothing is wrong.

A conversation is a generator of frames that is told what left because of each, so that it
answers as a real server would, with the addresses and numbers that have arrived there. Only
conversations get behind the first packet: to the states of TCP and SCTP, to FTP's data
connections, to errors about packets that did leave. What they send is sound, and counts as
such (`tests.fuzz.steps.Receive`), unless it says otherwise.
"""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz import craft
from tests.fuzz.craft import ACK, FIN, PSH, RST, SYN, Flow, Header
from tests.fuzz.exchange import Conversation, arrived, receive
from tests.fuzz.ftp_dialogue import ftp_dialogue
from tests.fuzz.landscape import CLIENT_PORTS, CLIENTS, FOREIGN, KNOWN, PORTS, VIPS
from tests.fuzz.steps import Receive
from tests.fuzz.world import Sent

RECENT = 64
"""So many packets that left are remembered, to be quoted."""
LONGEST = 65_535
_EXTENSIONS = (0, 43, 60)
_DATA, _INIT, _INIT_ACK, _ABORT, _SHUTDOWN, _SHUTDOWN_ACK = 0, 1, 2, 6, 7, 8
_ERROR, _COOKIE_ECHO, _COOKIE_ACK, _SHUTDOWN_COMPLETE = 9, 10, 11, 14


class Speakers:
    """Draws conversations.

    Attributes:
        left: packets that have left of late.
    """

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._number = 0
        self.left: deque[bytes] = deque(maxlen=RECENT)

    def note(self, sent: Sequence[Sent]) -> None:
        """Remember what left."""
        self.left.extend(data[craft.L3 :] for _, data in sent if len(data) > craft.L3 + 20)

    def conversation(self) -> Conversation:
        """Another one."""
        kinds: tuple[tuple[Callable[[], Conversation], int], ...] = (
            (self.tcp, 5),
            (lambda: ftp_dialogue(self._dice, self.flow(21), self.number), 5),
            (self.udp, 3),
            (self.sip, 3),
            (self.sctp, 3),
            (self.secured, 2),
            (self.errors, 4),
            (self.in_fragments, 3),
            (self.super_frames, 2),
            (self.from_servers, 2),
            (self.resolved, 1),
        )
        (kind,) = self._dice.choices(
            [kind for kind, _ in kinds], weights=[weight for _, weight in kinds]
        )
        return kind()

    # What all need

    def flow(self, *ports: int) -> Flow:
        """From some client to some virtual or foreign address, at one of these ports or any."""
        dice = self._dice
        family = dice.choice((4, 6))
        port = dice.choice(ports) if ports else dice.choice(PORTS) or dice.choice((1, 7, 4000))
        there = dice.choice(VIPS[family] if ports or dice.random() < 0.9 else FOREIGN[family])
        return Flow(dice.choice(CLIENTS[family]), dice.choice(CLIENT_PORTS), there, port)

    def header(self) -> Header:
        """An IP header; mostly the plain one."""
        dice = self._dice
        if dice.random() < 0.8:
            return craft.PLAIN
        ttl = dice.choice((64, 1, 2, 255, 0)) if dice.random() < 0.3 else 64
        extensions: list[tuple[int, bytes]] = []
        options = b""
        drawn = dice.random()
        if drawn < 0.3:
            for kind in dice.choices(_EXTENSIONS, k=dice.choice((1, 1, 2, 8, 9))):
                units = dice.choice((0, 0, 1))
                extensions.append(
                    (kind, bytes((0, units, 1, 4 + units * 8)) + bytes(4 + units * 8))
                )
        elif drawn < 0.7:
            options = self.options()
        return Header(
            ttl,
            dice.choice((0, 1, 2, 3, 0xFF)),
            dice.randrange(1 << 16),
            dice.random() < 0.6,
            0,
            options,
            tuple(extensions),
        )

    def options(self) -> bytes:
        """IPv4 options that are in order, or contradict themselves in one place."""
        dice = self._dice
        route = bytes((7, 11, 4)) + bytes(8)
        stamps = bytes((68, 12, 5, dice.choice((0, 1, 3)))) + bytes(8)
        loose = bytes((131, 7, 4)) + bytes(4)
        chosen = b"".join(dice.sample([route, stamps, loose, b"\x94\x04\0\0", b"\1\1"], 2))
        if dice.random() < 0.3:
            at = dice.randrange(len(chosen))
            chosen = chosen[:at] + bytes((dice.randrange(256),)) + chosen[at + 1 :]
        return (chosen + bytes(-len(chosen) % 4))[:40]

    def payload(self) -> bytes:
        """Some bytes."""
        dice = self._dice
        return bytes(dice.choice((0, 1, 7, 64, 536, 1400, 1460, 2000)))

    # Conversations

    def tcp(self) -> Conversation:
        """Handshake, data both ways, and an end; some wander off."""
        flow, header = self.flow(), self.header()
        dice = self._dice
        sent = yield receive(craft.tcp(flow, SYN, options=b"\2\4\5\xb4", header=header))
        seen = arrived(sent, craft.TCP)
        if seen is None:
            return
        back = seen.flow.back
        yield receive(craft.tcp(back, SYN | ACK, acknowledgement=1001))
        yield receive(craft.tcp(flow, ACK, sequence=1001, acknowledgement=1001))
        for _ in range(dice.randrange(6)):
            here = flow if dice.random() < 0.5 else back
            yield receive(craft.tcp(here, ACK | PSH, self.payload(), header=self.header()))
        for flags in dice.choice(((FIN | ACK, FIN | ACK, ACK), (RST,), (FIN | ACK, RST), ())):
            here = flow if dice.random() < 0.5 else back
            yield receive(craft.tcp(here, flags, sequence=2000, acknowledgement=2000))
        if dice.random() < 0.5:
            yield receive(craft.tcp(flow, SYN, sequence=5000))

    def number(self) -> int:
        """An identification of a datagram, not used before in this run."""
        self._number += 1
        return self._number

    def udp(self) -> Conversation:
        """Datagrams both ways, with checksum and without."""
        dice = self._dice
        flow = self.flow()
        for _ in range(dice.randint(1, 4)):
            checksum = flow.family == 6 or dice.random() < 0.7
            packet = craft.udp(flow, self.payload(), checksum=checksum, header=self.header())
            sent = yield receive(packet)
            seen = arrived(sent, craft.UDP)
            if seen is not None and dice.random() < 0.6:
                yield receive(craft.udp(seen.flow.back, self.payload()))

    def sip(self) -> Conversation:
        """A dialogue in which the real server speaks as well, sometimes first."""
        dice = self._dice
        flow = self.flow(5060)
        name = dice.choice((b"a@b", b"x", b"very.long" * 40, b""))
        line = b"\r\n" + dice.choice((b"Call-ID: ", b"i:", b"CALL-ID :\r\n ")) + name + b"\r\n"
        text = b"INVITE sip:x SIP/2.0" + line + b"\r\n"
        for _ in range(dice.randint(1, 4)):
            drawn = dice.random()
            if drawn < 0.5:
                yield receive(craft.udp(flow, text if dice.random() < 0.9 else b"?"))
            else:
                server = dice.choice(KNOWN[flow.family])
                back = Flow(server, dice.choice((5060, 8080)), flow.source, flow.source_port)
                yield receive(craft.udp(back, text))

    def sctp(self) -> Conversation:
        """An association, step by step, and sometimes a step too far."""
        dice = self._dice
        flow = self.flow()
        sent = yield receive(craft.sctp(flow, craft.chunk(_INIT), header=self.header()))
        seen = arrived(sent, craft.SCTP)
        back = seen.flow.back if seen is not None else flow.back
        script = [
            (back, _INIT_ACK),
            (flow, _COOKIE_ECHO),
            (back, _COOKIE_ACK),
            (flow, _DATA),
            (back, _DATA),
            (flow, _SHUTDOWN),
            (back, _SHUTDOWN_ACK),
            (flow, _SHUTDOWN_COMPLETE),
        ]
        for here, kind in script[: dice.randrange(len(script) + 1)]:
            chunks = craft.chunk(kind)
            if dice.random() < 0.1:
                chunks += craft.chunk(dice.choice((_ABORT, _ERROR, 200)), b"")
            yield receive(craft.sctp(here, chunks, header=self.header()))
        if dice.random() < 0.3:
            yield receive(craft.sctp(flow, craft.chunk(dice.randrange(16))))

    def secured(self) -> Conversation:
        """The key exchange of IPsec, and the packets that follow it."""
        dice = self._dice
        flow = self.flow(500)
        flow = Flow(flow.source, 500, flow.destination, 500)
        sent = yield receive(craft.udp(flow, b"ike"))
        seen = arrived(sent, craft.UDP)
        for _ in range(dice.randint(1, 3)):
            here = flow
            if seen is not None and dice.random() < 0.5:
                here = seen.flow.back
            protocol = dice.choice((craft.ESP, craft.AH))
            body = bytes((craft.TCP, 4)) + bytes(dice.choice((22, 60, 1500)))
            header = self.header()
            yield receive(craft.ip(here.source, here.destination, protocol, body, header))

    def errors(self) -> Conversation:
        """ICMP errors about packets that left, from those who may have got them."""
        dice = self._dice
        for _ in range(dice.randint(1, 3)):
            if not self.left:
                return
            quote = dice.choice(self.left)
            seen = craft.read(quote)
            if seen is None:
                return
            family = 4 if len(seen.flow.source) == 4 else 6
            reporter = dice.choice((seen.flow.destination, CLIENTS[family][0]))
            rest = dice.choice((0, 68, 552, 576, 1280, 1400, 1500, 0xFFFFFFFF))
            if family == 4:
                kind, code = dice.choice(((3, 4), (3, 1), (3, 3), (11, 0), (4, 0), (12, 0), (5, 1)))
            else:
                kind, code = dice.choice(((2, 0), (1, 0), (1, 4), (3, 0), (4, 1), (128, 0)))
            quote = quote[: dice.choice((28, 48, 88, 200, 548, 1232))]
            packet = craft.icmp(
                reporter,
                seen.flow.source if dice.random() < 0.9 else dice.choice(VIPS[family]),
                kind,
                code,
                quote,
                rest=rest,
                header=self.header(),
            )
            yield receive(packet)
            if dice.random() < 0.1:
                yield Receive(craft.frame(packet[:-1] + b"\x99"))
        # One about a packet that never was; with schedule_icmp it may open a connection.
        flow = self.flow()
        quote = craft.tcp(flow.back, ACK)[: dice.choice((28, 40, 60))]
        yield receive(
            craft.icmp(
                flow.source,
                flow.destination,
                *((3, 4) if flow.family == 4 else (2, 0)),
                quote,
                rest=1300,
            )
        )

    def in_fragments(self) -> Conversation:
        """Datagrams in pieces, in any order, twice, or not all of them."""
        dice = self._dice
        flow = self.flow()
        for _ in range(dice.randint(1, 2)):
            header = Header(dont_fragment=dice.random() < 0.3, tos=dice.choice((0, 0, 1, 3)))
            body = bytes(dice.choice((100, 1600, 4000, 20_000)))
            packet = self._to_be_cut(flow, body, header)
            size = dice.choice((8, 48, 576, 1400))
            size = max(size, len(body) // 40 & ~7)
            pieces = craft.fragments(packet, [size] * 2000, self.number())
            if dice.random() < 0.5:
                dice.shuffle(pieces)
            if dice.random() < 0.3:
                pieces.pop(dice.randrange(len(pieces)))
            if pieces and dice.random() < 0.2:
                pieces.insert(0, dice.choice(pieces))
            for piece in pieces:
                yield receive(piece)

    def _to_be_cut(self, flow: Flow, body: bytes, header: Header) -> bytes:
        dice = self._dice
        drawn = dice.randrange(4)
        if drawn == 0:
            return craft.tcp(flow, dice.choice((SYN, ACK)), body, header=header)
        if drawn == 1:
            return craft.sctp(flow, craft.chunk(_INIT, body[:2000]), header=header)
        if drawn == 2:
            return craft.ip(flow.source, flow.destination, craft.ESP, body, header)
        return craft.udp(flow, body, header=header)

    def super_frames(self) -> Conversation:
        """What the kernel hands over before it is cut: large, the checksum still partial."""
        dice = self._dice
        flow = self.flow()
        yield receive(craft.tcp(flow, SYN))
        l4 = 34 if flow.family == 4 else 54
        size = dice.choice((3000, 20_000, 65_000, LONGEST - 40 if flow.family == 4 else 65_000))
        body = bytes(size)
        if dice.random() < 0.6:
            packet = _partial(craft.tcp(flow, ACK | PSH, body), craft.TCP)
            kind = 1 if flow.family == 4 else 4
            vnet = craft.vnet(
                flags=1, gso_type=kind, gso_size=dice.choice((536, 1400, 1440)), start=l4, offset=16
            )
        else:
            packet = _partial(craft.udp(flow, body[:60_000]), craft.UDP)
            vnet = craft.vnet(flags=1, gso_type=5, gso_size=1200, start=l4, offset=6)
        yield receive(packet, vnet)
        small = _partial(craft.udp(flow, self.payload()), craft.UDP)
        yield receive(small, craft.vnet(flags=1, start=l4, offset=6))

    def from_servers(self) -> Conversation:
        """Packets of real servers that belong to no connection."""
        dice = self._dice
        family = dice.choice((4, 6))
        flow = Flow(
            dice.choice(KNOWN[family]),
            dice.choice((80, 8080, 5060, 21)),
            dice.choice((*CLIENTS[family], VIPS[family][0])),
            dice.choice(CLIENT_PORTS),
        )
        yield receive(craft.tcp(flow, dice.choice((ACK, SYN | ACK, RST))))
        yield receive(craft.udp(flow, self.payload()))
        yield receive(craft.sctp(flow, craft.chunk(dice.choice((_DATA, _ABORT)))))

    def resolved(self) -> Conversation:
        """Many packets of one flow, as to a next hop that is not resolved."""
        flow = self.flow()
        for number in range(80):
            port = 30000 + number
            here = Flow(flow.source, port, flow.destination, flow.destination_port)
            yield receive(craft.tcp(here, SYN))


def _partial(packet: bytes, protocol: int) -> bytes:
    """A packet whose transport checksum is left to hardware."""
    seen = craft.read(packet)
    assert seen is not None
    length = len(packet) - seen.l4
    pseudo = craft.pseudo_header(seen.flow.source, seen.flow.destination, protocol, length)
    field = seen.l4 + (16 if protocol == craft.TCP else 6)
    partial = ~craft.internet_checksum(pseudo) & 0xFFFF
    return packet[:field] + partial.to_bytes(2) + packet[field + 2 :]
