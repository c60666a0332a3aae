"""FTP as a client and a real server speak it through a director, in order but for one segment.

The numbers are those that each end counts, so that what the director has to shift is seen.
"""

from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz import craft
from tests.fuzz.craft import ACK, FIN, PSH, SYN, Flow, Header
from tests.fuzz.exchange import Conversation, arrived, receive
from tests.fuzz.landscape import VIPS
from tests.fuzz.steps import Receive
from tests.fuzz.world import Sent


def ftp_dialogue(dice: Random, flow: Flow, number: Callable[[], int]) -> Conversation:
    """A control connection that asks for data connections in every way.

    Args:
        dice: for everything.
        flow: from the client to port 21.
        number: gives identifications for datagrams in fragments.
    """
    if dice.random() < 0.8:
        # To the service that is always there, by NAT.
        flow = Flow(flow.source, flow.source_port, VIPS[flow.family][0], 21)
    sent = yield receive(craft.tcp(flow, SYN))
    seen = arrived(sent, craft.TCP)
    if seen is None:
        return
    back = seen.flow.back
    yield receive(craft.tcp(back, SYN | ACK, acknowledgement=1001))
    yield receive(craft.tcp(flow, ACK, sequence=1001, acknowledgement=1001))
    ask, answer = 1001, 1001
    for _ in range(dice.randint(1, 5)):
        text, reply, active = _transfer(dice, flow, back)
        yield receive(craft.tcp(flow, ACK | PSH, text, sequence=ask, acknowledgement=answer))
        ask += len(text)
        large = len(reply) > 60_000  # nothing fits beside it
        options = _sack(answer) if dice.random() < 0.3 and not large else b""
        packet = craft.tcp(
            back, ACK | PSH, reply, sequence=answer, acknowledgement=ask, options=options
        )
        whole = [packet]
        if dice.random() < 0.2 and not large:
            header = Header(dont_fragment=False)
            packet = craft.tcp(
                back,
                ACK,
                reply + bytes(64),
                sequence=answer,
                acknowledgement=ask,
                header=header,
            )
            whole = craft.fragments(packet, (24, 32), number())
        for piece in whole * dice.choice((1, 1, 2)):
            sent = yield receive(piece)
        answer += len(reply)
        yield from _data(dice, flow, back, sent, active)
        options = _sack(answer) if dice.random() < 0.3 else b""
        yield receive(craft.tcp(flow, ACK, sequence=ask, acknowledgement=answer, options=options))
        if dice.random() < 0.1:
            broken = craft.tcp(flow, ACK | PSH, b"PASV\r\n", sequence=ask)
            yield Receive(craft.frame(broken[:-2] + b"xx"))
    if dice.random() < 0.5:
        yield receive(craft.tcp(flow, FIN | ACK, sequence=ask, acknowledgement=answer))


def _sack(edge: int) -> bytes:
    return bytes((1, 1, 5, 10)) + edge.to_bytes(4) + (edge + 100).to_bytes(4)


def _transfer(dice: Random, flow: Flow, back: Flow) -> tuple[bytes, bytes, int]:
    """A command, its reply, and the port where the client waits; 0 with passive ones."""
    port = dice.choice((2000, 40001, 65535, 1024))
    halves = b"%d,%d" % (port >> 8, port & 0xFF)
    if flow.family == 4 and dice.random() < 0.6:
        here = b",".join(b"%d" % byte for byte in flow.source)
        there = b",".join(b"%d" % byte for byte in back.source)
        if dice.random() < 0.4:
            return b"PORT " + here + b"," + halves + b"\r\n", b"200 ok\r\n", port
        reply = b"227 Entering Passive Mode (" + there + b"," + halves + b").\r\n"
        if dice.random() < 0.1:
            reply += bytes(dice.choice((1400, 65_535 - 40 - len(reply))))
        return b"PASV\r\n", reply, 0
    if dice.random() < 0.3:
        family = b"1" if flow.family == 4 else b"2"
        host = b".".join(b"%d" % byte for byte in flow.source)
        if flow.family == 6:
            host = b"2001:db8:1::77"
        return b"EPRT |%s|%s|%d|\r\n" % (family, host, port), b"200 ok\r\n", port
    return b"EPSV\r\n", b"229 Extended (|||%d|)\r\n" % port, 0


def _data(dice: Random, flow: Flow, back: Flow, sent: Sequence[Sent], active: int) -> Conversation:
    """The data connection that was agreed on: from the server, or to the text's port."""
    if active:
        data = Flow(back.source, back.source_port - 1 & 0xFFFF, flow.source, active)
        yield receive(craft.tcp(data, SYN))
        yield receive(craft.tcp(Flow(flow.source, active, flow.destination, 20), SYN | ACK))
        return
    seen = arrived(sent, craft.TCP)
    if seen is None:
        return
    text = bytes(seen.packet[seen.l4 + 20 :])
    found = text.partition(b"|||")[2].partition(b"|")[0] or b"2000"
    port = int(found) if found.isdigit() and 0 < int(found) < 65536 else 2000
    data = Flow(flow.source, dice.choice((40005, 40006)), flow.destination, port)
    for flags in (SYN, ACK, FIN | ACK)[: dice.randint(1, 3)]:
        yield receive(craft.tcp(data, flags))
