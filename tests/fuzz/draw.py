"""Draw what happens next: conversations and what becomes of them, changes, peers, time.

Everything is drawn from one generator of random numbers, and from what the director has
answered, so a seed gives the same run again.
"""

from collections import deque
from random import Random

from lvsha.datapath.network import QUEUE_FRAMES_MAX
from lvsha.datapath.stand_ins import StandIn
from lvsha.model import (
    TEMPLATE_BIT,
    ConnectionDetails,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    connection_key,
    template_key,
)
from tests.fuzz import mutations
from tests.fuzz.conversations import Speakers
from tests.fuzz.exchange import Conversation
from tests.fuzz.landscape import (
    CLIENT_PORTS,
    CLIENTS,
    KNOWN,
    MARKS,
    PORTS,
    VIPS,
    VIRTUAL,
    Landscape,
    neighbours,
)
from tests.fuzz.steps import (
    Answer,
    Apply,
    DeleteServer,
    Forget,
    Learn,
    Receive,
    Sleep,
    Snapshot,
    Step,
)
from tests.fuzz.world import World

CONVERSATIONS = 6
"""So many go on at the same time."""
PAUSES = (0.0, 0.001, 0.5, 1.0, 1.0, 2.0, 3.5, 10.0, 31.0, 61.0, 130.0, 910.0, 5000.0)
CORPUS_MAX = 512
ANSWERED = 0.05
"""How likely peers answer now, while packets wait for that."""
DROUGHT_FRAMES = QUEUE_FRAMES_MAX + 6

RECENT = 64


class Corpus:
    """Frames that reached something new, from all runs; the oldest give way."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque(maxlen=CORPUS_MAX)

    def draw(self, dice: Random, otherwise: bytes) -> bytes:
        """One of them."""
        return dice.choice(self.frames) if self.frames else otherwise


class Drawer:
    """Draws the steps of one run.

    Args:
        dice: for everything.
        corpus: frames that were interesting before.
    """

    def __init__(self, dice: Random, corpus: Corpus) -> None:
        self._dice = dice
        self._corpus = corpus
        self._landscape = Landscape(dice)
        self._speakers = Speakers(dice)
        self._conversations: list[Conversation] = []
        self._speaking: Conversation | None = None
        self._waiting: dict[int, Receive] = {}
        self._recent: deque[bytes] = deque(maxlen=RECENT)
        self._planned: deque[Step] = deque()
        # How much else happens between frames; in some runs hardly anything does.
        self._unrest = dice.choice((0.005, 0.02, 0.08))
        self._hostility = dice.choice((0.1, 0.4, 0.7))

    def beginning(self) -> list[Step]:
        """The configuration."""
        return self._landscape.beginning()

    def step(self, world: World) -> Step:
        """What happens next; `told` must be called when it has."""
        dice = self._dice
        self._speaking = None
        if self._planned:
            return self._planned.popleft()
        drawn = dice.random()
        if drawn < self._unrest:
            return self._landscape.change()
        if drawn < self._unrest * 1.5:
            return self._peer(world)
        if drawn < self._unrest * 1.7:
            return self._removal(world)
        if world.director.asks and dice.random() < ANSWERED:
            return self._answer(world)
        if drawn < self._unrest * 1.7 + 0.0005 and self._recent:
            self._plan_drought(dice.choice(self._recent))
        if drawn < self._unrest * 1.7 + 0.03:
            return Sleep(dice.choice(PAUSES) * dice.choice((1, 1, 0.37)))
        if drawn > 0.995:
            return Receive(mutations.noise(dice))
        if dice.random() < self._hostility and (self._recent or self._corpus.frames):
            base, other = self._some(), self._some()
            return Receive(mutations.mutate(dice, base, other))
        return self._spoken()

    def told(self, step: Step, world: World, *, is_new: bool) -> None:
        """What became of the step; ``is_new``: it reached something that none had."""
        if not isinstance(step, Receive):
            return
        if is_new:
            self._corpus.frames.append(step.data)
        self._speakers.note(world.sent)
        speaking = self._speaking
        if speaking is None:
            return
        self._recent.append(step.data)
        try:
            self._waiting[id(speaking)] = speaking.send(world.sent)
        except StopIteration:
            self._conversations.remove(speaking)

    def _spoken(self) -> Receive:
        """The next frame of a conversation."""
        dice = self._dice
        while len(self._conversations) < CONVERSATIONS:
            conversation = self._speakers.conversation()
            try:
                first = next(conversation)
            except StopIteration:
                continue
            self._conversations.append(conversation)
            self._waiting[id(conversation)] = first
        speaking = self._speaking = dice.choice(self._conversations)
        frame = self._waiting.pop(id(speaking))
        if dice.random() < self._hostility / 8:
            # It goes on with what became of something else.
            return Receive(mutations.mutate(dice, frame.data, self._some(frame.data)))
        return frame

    def _some(self, otherwise: bytes = b"") -> bytes:
        dice = self._dice
        if self._recent and (dice.random() < 0.6 or not self._corpus.frames):
            return dice.choice(self._recent)
        return self._corpus.draw(dice, otherwise)

    def _removal(self, world: World) -> Step:
        """A real server goes that has connections, if there is one."""
        bound = [
            connection.server
            for connection in world.director.registry.table.connections()
            if not isinstance(connection.server, StandIn)
        ]
        if not bound:
            return self._landscape.change()
        server = self._dice.choice(bound)
        return DeleteServer(server.service.identity, server.address, server.port)

    def _plan_drought(self, frame: bytes) -> None:
        """No neighbour answers while many frames want to go there; then all do."""
        self._planned += [Learn(change) for change in neighbours(known=False)]
        self._planned += [Receive(frame)] * DROUGHT_FRAMES
        self._planned += [Learn(change) for change in neighbours(known=True)]

    # A peer

    def _peer(self, world: World) -> Step:
        dice = self._dice
        drawn = dice.random()
        if drawn < 0.7:
            return Apply(self.record(world))
        if drawn < 0.85:
            return Forget(self.record(world).key)
        records = tuple(self.record(world) for _ in range(dice.randrange(6)))
        if records and dice.random() < 0.5:
            records += tuple(_of_other_client(records[-1], dice) for _ in range(6))
        addresses = tuple(address for address in VIRTUAL if dice.random() < 0.5)
        return Snapshot(records, addresses)

    def _answer(self, world: World) -> Answer:
        """Peers know some of the connections that they are asked for, and deny others."""
        dice = self._dice
        known: list[ConnectionRecord] = []
        denied: list[bytes] = []
        for key in world.director._questions._held:
            drawn = dice.random()
            if drawn < 0.4:
                denied.append(key)
            elif drawn < 0.8:
                service = world.director._opener.service_of(key)
                servers = service.servers if service is not None else ()
                if servers:
                    server = dice.choice(servers)
                    port = server.port or int.from_bytes(key[-2:])
                    state = dice.choice((1, 4, 7, 8))
                    known.append(
                        ConnectionRecord(key, server.address, port, server.method, state, 0, 900.0)
                    )
        return Answer(tuple(known), tuple(denied))

    def record(self, world: World) -> ConnectionRecord:
        """A record that the sync would let through; sometimes of a connection that exists."""
        dice = self._dice
        family = dice.choice((4, 6))
        protocol = dice.choice((6, 6, 17, 17, 132, 0, 50, 255))
        client, port = dice.choice(CLIENTS[family]), dice.choice(CLIENT_PORTS)
        virtual, virtual_port = dice.choice(VIPS[family]), dice.choice(PORTS)
        if dice.random() < 0.5:
            standing = list(world.director.registry.table.connections())
            if standing:
                one = dice.choice(standing)
                protocol, (client, port), (virtual, virtual_port) = (
                    one.protocol,
                    one.client,
                    one.virtual,
                )
        family = 4 if len(client) == 4 else 6
        flags = dice.choice((0, int(ConnectionFlag.INACTIVE), dice.randrange(1 << 32)))
        state = dice.choice((*range(14), 255))
        key = connection_key(protocol, client, port, virtual, virtual_port)
        if dice.random() < 0.3:
            mark = dice.choice(MARKS).to_bytes(4) + bytes(len(client) - 4)
            key = connection_key(protocol, client, 0, virtual if protocol else mark, virtual_port)
            key = template_key(key, dice.choice((b"", b"", b"1@a")))
            state = dice.choice((0, 1, 1, state))
            flags = dice.choice((0x1120, 0x1120, flags))
        return ConnectionRecord(
            key,
            dice.choice(KNOWN[family if dice.random() < 0.9 else 10 - family]),
            dice.choice((*PORTS, 8080, 65535)),
            dice.choice(list(ForwardMethod)),
            state,
            flags,
            dice.choice((0.0, 0.5, 3.0, 900.0, float(2**31))),
            self._details(world) if dice.random() < 0.3 else None,
        )

    def _details(self, world: World) -> ConnectionDetails:
        """What few records have beside; some of it cannot be."""
        dice = self._dice
        parent = b""
        standing = list(world.director.registry.table.connections())
        if standing and dice.random() < 0.5:
            parent = dice.choice(standing).record_key
        numbers = (0, 1, 2**31, 2**32 - 7)
        return ConnectionDetails(
            mark=dice.choice((0, *MARKS)),
            shifts=dice.choice(((), tuple(dice.choice(numbers) for _ in range(6)))),
            engine=dice.choice(("", "sip", "sip", "none")),
            parent=parent,
            dialogue=dice.choice(((), (1,), (3, dice.choice(numbers), 1), (2,), (1, 5))),
            others=dice.choice(((), ((200, b"later"),))),
        )


def _of_other_client(record: ConnectionRecord, dice: Random) -> ConnectionRecord:
    """A record that differs only in the client's port."""
    at = 10 if record.key[0] & ~TEMPLATE_BIT == 4 else 34
    port = dice.choice(CLIENT_PORTS).to_bytes(2)
    return record._replace(key=record.key[:at] + port + record.key[at + 2 :])
