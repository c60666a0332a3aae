"""Call a peer to lead next, and answer such a call.

A call is repeated every `HAND_OVER_INTERVAL`, for it may be lost, or come before what the
called node misses. It is answered with the moment of the answer, and the next call brings that
moment back: so a node that was stopped, and finds an old call when it goes on, does not take
over from a leader that has long thought of something else.

Times are seconds on a monotonic clock; moments are microseconds of it.
"""

from dataclasses import replace
from typing import Final

from lvsha.sync.actions import Action, Send, TakeOver
from lvsha.sync.datagrams import encode
from lvsha.sync.messages import Handover, Origin
from lvsha.sync.peers import Peer

HAND_OVER_INTERVAL: Final = 0.02
CALL_AGE_MAX: Final = 0.2
_MICROSECONDS: Final = 1_000_000


class Calls:
    """Those of one node.

    Attributes:
        deadline: when to call again; infinity for never.
    """

    def __init__(self) -> None:
        self.deadline = float("inf")
        self._call: Handover | None = None

    def __bool__(self) -> bool:
        """Whether a successor is wanted."""
        return self._call is not None

    def begin(self, peer: Peer, origin: Origin, now: float) -> list[Action]:
        """Call a peer from now on."""
        self._call = Handover(origin, peer.node, peer.epoch)
        return self.repeat(origin, now)

    def end(self) -> None:
        """Call nobody any more."""
        self._call = None
        self.deadline = float("inf")

    def repeat(self, origin: Origin, now: float) -> list[Action]:
        """Call again, if anybody was called."""
        if self._call is None:
            return []
        self.deadline = now + HAND_OVER_INTERVAL
        return [Send(encode(replace(self._call, origin=origin)))]

    def answered(self, peer: Peer, message: Handover, origin: Origin, now: float) -> list[Action]:
        """The called node is ready: call it again at once."""
        call = self._call
        if call is None or (peer.node, peer.epoch) != (call.node, call.node_epoch):
            return []
        self._call = replace(call, moment=message.moment)
        return self.repeat(origin, now)


def called(leader: Peer, message: Handover, origin: Origin, now: float) -> Action:
    """What a node does that is called and has everything: take over, or have the call renewed."""
    moment = round(now * _MICROSECONDS)
    if 0 <= moment - message.moment <= CALL_AGE_MAX * _MICROSECONDS:
        return TakeOver(leader.node)
    return Send(encode(Handover(origin, leader.node, leader.epoch, moment)))
