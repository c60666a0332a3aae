"""A real forwarder whose questions are answered as if there were a peer.

    python -m tests.netns.answered_director FAMILY ANSWER CLIENT-PORT

It forwards TCP to port 80 of the yard's virtual address to the yard's server by NAT, with an
empty table. ANSWER is ``record``: the peer knows the connection of this client's port;
``deny``: it does not; ``nothing``: it does not answer. "ready" is written when it forwards, and
at the end of the standard input what was dropped, as JSON.
"""

import json
import random
import sys

import trio

from lvsha.datapath.director import Director
from lvsha.datapath.forwarder import Forwarder
from lvsha.datapath.service_policy import Unknown
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ConnectionRecord, ForwardMethod, Protocol, parse_address
from lvsha.tally import Tally
from tests.yard import CLIENT, SERVER, VIP

ANSWER_SECONDS = 0.02


class AnsweredDirector:
    """A director, its forwarder and its peer."""

    def __init__(self, family: int, answer: str, client_port: int) -> None:
        self.director = Director(connections_max=1000, dice=random.Random(1), unknown=Unknown.ASK)
        virtual, server = parse_address(VIP[family]), parse_address(SERVER[family])
        identity = ServiceIdentity(family, Protocol.TCP, virtual, 80)
        self.director.services.add(identity, ServiceOptions("rr"))
        self.director.services.add_server(identity, server, 8080, ServerOptions(ForwardMethod.NAT))
        self.director.registry.tallies[virtual] = Tally(1)
        self.record = ConnectionRecord.between(
            Protocol.TCP, parse_address(CLIENT[family]), client_port, virtual, 80, server, 8080,
            ForwardMethod.NAT, TcpState.ESTABLISHED, 0, 900.0,
        )  # fmt: skip
        self.answer = answer
        self.asked = trio.Event()
        self.forwarder = Forwarder(self.director, ["eth0", "eth1"], self.note, 3.0)

    def note(self) -> None:
        self.asked.set()

    async def be_the_peer(self) -> None:
        while True:
            await self.asked.wait()
            self.asked = trio.Event()
            await trio.sleep(ANSWER_SECONDS)
            for keys in self.director.take_questions().values():
                assert keys == [self.record.key]
                if self.answer == "record":
                    self.director.replication.apply([self.record], trio.current_time())
                elif self.answer == "deny":
                    self.director.deny(keys)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.be_the_peer)
            await nursery.start(self.forwarder.run)
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()
        drops = {reason.name: count for reason, count in self.director.drops.items()}
        print(json.dumps(drops), flush=True)


if __name__ == "__main__":
    family, answer, client_port = sys.argv[1:]
    trio.run(AnsweredDirector(int(family), answer, int(client_port)).run)
