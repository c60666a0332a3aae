"""Let what was taken out of the pair file serve its connections to their end.

A server that a reload takes away gets the weight 0, and goes when its last connection has
ended; a service goes with its last server. What always holds:

* No connection is cut off by that, however long it lives. Whoever does not want to wait removes
  the server with ``ipvsadm -d``.
* The operator's word wins: what gets another weight meanwhile is kept.
* What is leaving may be gone on one node and not yet on another, so nodes do not compare it.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

import structlog
import trio

from lvsha.datapath.director import Director
from lvsha.datapath.service_table import describe
from lvsha.datapath.services import ServiceIdentity, VirtualService
from lvsha.keeper import Endpoint

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at what is leaving."""

_log = structlog.get_logger()


class Retirement:
    """What leaves a director.

    Args:
        director: which.
        on_change: called after servers or services have gone.
    """

    def __init__(self, director: Director, on_change: Callable[[], None]) -> None:
        self._services = director.services
        self._on_change = on_change
        self._servers: dict[ServiceIdentity, set[Endpoint]] = {}
        self._whole: set[ServiceIdentity] = set()

    def retire(self, identity: ServiceIdentity) -> None:
        """Let a service go; under its name another one may run from now on."""
        service = self._services.get(identity)
        if service is None:
            return
        service.name = describe(identity)
        self._whole.add(identity)
        for server in list(service.servers):
            self.retire_server(identity, (server.address, server.port))

    def retire_server(self, identity: ServiceIdentity, end: Endpoint) -> None:
        """Let a server of a service go."""
        service = self._services.get(identity)
        server = None if service is None else service.server(*end)
        if server is not None:
            self._services.edit_server(identity, *end, replace(server.options, weight=0))
            self._servers.setdefault(identity, set()).add(end)

    def keep(self, identity: ServiceIdentity) -> None:
        """Let a service stay after all; of its servers each is asked for by itself."""
        self._whole.discard(identity)

    def keep_server(self, identity: ServiceIdentity, end: Endpoint) -> None:
        """Let a server stay after all."""
        self._servers.get(identity, set()).discard(end)

    def is_leaving(self, service: VirtualService) -> bool:
        """Whether a service goes with its last server."""
        return service.identity in self._whole

    def leaving(self, service: VirtualService) -> Collection[Endpoint]:
        """The servers of a service that go with their last connection."""
        return self._servers.get(service.identity, ())

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await trio.sleep(LOOK_INTERVAL)
            self.look()

    def look(self) -> None:
        """Let go what has no connection any more."""
        gone = False
        for identity, ends in list(self._servers.items()):
            for end in list(ends):
                gone |= self._look_at(identity, end)
            if not ends:
                del self._servers[identity]
        for identity in self._whole - self._servers.keys():
            self._whole.discard(identity)
            service = self._services.get(identity)
            # One whose servers got another weight stays.
            if service is not None and not service.servers:
                self._services.delete(identity)
                _log.info("service removed", service=service.name)
                gone = True
        if gone:
            self._on_change()

    def _look_at(self, identity: ServiceIdentity, end: Endpoint) -> bool:
        """Whether a server has gone now."""
        service = self._services.get(identity)
        server = None if service is None else service.server(*end)
        if service is None or server is None or server.weight:
            self._servers[identity].discard(end)
            return False
        if server.active or server.inactive:
            return False
        self._services.delete_server(identity, *end)
        self._servers[identity].discard(end)
        _log.info("server removed", service=service.name, server=str(server))
        return True
