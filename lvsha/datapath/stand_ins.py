"""Real servers that another director has, and this one has not.

A connection that was told of exists here although its service or its server does not: it is
unbound. Its packets go to the server that the record names, by the method that it names, and
count nowhere that anyone looks. In its binding stands a `StandIn`, which is in no service's
list, until the server is added here.

What always holds: a stand-in lives no longer than the last connection that is bound to it.
"""

from typing import Final
from weakref import WeakValueDictionary

from lvsha.datapath.services import (
    RealServer,
    ServerOptions,
    ServiceIdentity,
    ServiceOptions,
    VirtualService,
)
from lvsha.model import ForwardMethod

STAND_INS_MAX: Final = 10_000
"""As many as a pair file may have services; a peer cannot make this node allocate more."""


class StandIn(RealServer):
    """What stands for a real server that is not listed here."""

    __slots__ = ("__weakref__",)


class StandIns:
    """All of them."""

    def __init__(self) -> None:
        # It has no scheduler, no persistence, and no other's identity.
        self._service = VirtualService("", ServiceIdentity(0, 0), ServiceOptions("none"))
        self._servers: WeakValueDictionary[tuple[bytes, ForwardMethod], StandIn] = (
            WeakValueDictionary()
        )

    def get(self, address: bytes, method: ForwardMethod) -> StandIn | None:
        """What stands for the server at an address; None if there are too many."""
        found = self._servers.get((address, method))
        if found is None and len(self._servers) < STAND_INS_MAX:
            found = StandIn(self._service, address, 0, ServerOptions(method))
            self._servers[address, method] = found
        return found

    @property
    def connections(self) -> int:
        """How many connections and templates are unbound."""
        return sum(each.active + each.inactive + each.persistent for each in self._servers.values())
