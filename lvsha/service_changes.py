"""Bring a running director's services from one pair file to another.

Only what the two files say differently is changed, option by option. What the operator has
changed meanwhile stays, unless the file says something else of it now than before; so does a
server stay away that was removed, while its entry is the same. No connection is cut off: what
the file does not have any more retires (`lvsha.datapath.service_table`).

Weights, and whether a server is there at all, are another's to decide where servers are checked
(`lvsha.node_health`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from lvsha.build import (
    default_policy,
    server_options,
    service_identity,
    service_options,
    service_policy,
)
from lvsha.config import Pair, Server, Service
from lvsha.datapath.director import Director
from lvsha.datapath.service_policy import ServicePolicy
from lvsha.datapath.services import ServerOptions, ServiceIdentity, ServiceOptions
from lvsha.keeper import Endpoint

_Options = TypeVar("_Options", ServerOptions, ServiceOptions)


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """A service of one pair file and of another; None: only the other has it."""

    old: Service | None
    new: Service | None

    @property
    def name(self) -> str:
        """What the operator calls it."""
        service = self.new or self.old
        assert service is not None, "one of the files has it"
        return service.name


def service_changes(old: Pair, new: Pair) -> list[ServiceChange]:
    """What differs, last what is gone; services are told apart by what clients connect to."""
    before = {service_identity(service): service for service in old.services}
    after = {service_identity(service): service for service in new.services}
    return [
        *(
            ServiceChange(before.get(key), service)
            for key, service in after.items()
            if before.get(key) != service
        ),
        *(ServiceChange(service, None) for key, service in before.items() if key not in after),
    ]


class ServiceChanges:
    """Carries changes out.

    Args:
        director: whose services.
    """

    def __init__(self, director: Director) -> None:
        self._services = director.services

    def carry_out(self, change: ServiceChange, pair: Pair) -> None:
        """Carry out one of them, of a pair file that is followed from now on.

        Raises:
            AdministrationError: what the operator has made of the service does not go with it.
        """
        old, new = change.old, change.new
        if new is None:
            assert old is not None, "one of the files has it"
            if self._services.get(service_identity(old)) is not None:
                self._services.retire(service_identity(old))
            return
        identity = service_identity(new)
        if self._services.get(identity) is None:
            # The operator has removed it, and nothing of it is there.
            old = None
        self._bring(identity, old, new, pair)
        before = {} if old is None else dict(_entries(old.servers, old))
        after = dict(_entries(new.servers, new))
        for end in before.keys() - after.keys():
            self._retire(identity, end)
        for end, server in after.items():
            self._bring_server(identity, end, (old, before.get(end)), (new, server))
        if old is not None:
            self._change_sorry(identity, old, new, after)

    def _bring(
        self, identity: ServiceIdentity, old: Service | None, new: Service, pair: Pair
    ) -> None:
        """The service itself."""
        options, policy = service_options(new), self._policy(new, pair)
        service = self._services.get(identity)
        if service is None:
            service = self._services.add(identity, options, new.name, policy)
        else:
            known = None if old is None else service_options(old)
            options = _merged(known, options, service.options)
            if options != service.options:
                self._services.edit(identity, options)
            if old is None or self._policy(old, pair) != policy:
                service.policy = policy
        service.name = new.name

    def _policy(self, service: Service, pair: Pair) -> ServicePolicy:
        """As the file says, and where it says nothing as the table gives it to others."""
        policy = service_policy(service, default_policy(pair))
        return policy if policy.asked else replace(policy, tell=self._services.policy.tell)

    def _bring_server(
        self,
        identity: ServiceIdentity,
        end: Endpoint,
        before: tuple[Service | None, Server | None],
        after: tuple[Service, Server],
    ) -> None:
        """One server of it."""
        service = self._services.get(identity)
        assert service is not None, "it was brought"
        listed, wanted = service.server(*end), server_options(*after)
        old, entry = before
        if old is None or entry is None:
            if listed is None:
                self._services.add_server(identity, *end, wanted)
            else:
                self._services.edit_server(identity, *end, wanted)
        elif listed is not None:
            options = _merged(server_options(old, entry), wanted, listed.options)
            if options != listed.options:
                self._services.edit_server(identity, *end, options)
        elif not old.is_checked and entry != after[1]:
            self._services.add_server(identity, *end, wanted)

    def _change_sorry(
        self,
        identity: ServiceIdentity,
        old: Service,
        new: Service,
        after: Mapping[Endpoint, Server],
    ) -> None:
        """The sorry server, if it stands in; when it is needed is not decided here."""
        stood_in = dict(_entries((old.sorry_server,), old))
        stands_in = dict(_entries((new.sorry_server,), new))
        for end in stood_in.keys() - stands_in.keys() - after.keys():
            self._retire(identity, end)
        for end in stood_in.keys() & stands_in.keys():
            service = self._services.get(identity)
            listed = None if service is None else service.server(*end)
            if listed is not None:
                known, wanted = (
                    server_options(old, stood_in[end]),
                    server_options(new, stands_in[end]),
                )
                options = _merged(known, wanted, listed.options)
                self._services.edit_server(identity, *end, options)

    def _retire(self, identity: ServiceIdentity, end: Endpoint) -> None:
        service = self._services.get(identity)
        if service is not None and service.server(*end) is not None:
            self._services.retire_server(identity, *end)


def _merged(old: _Options | None, new: _Options, now: _Options) -> _Options:
    """What is in force, but for those options that the file gives another value."""
    if old is None:
        return new
    if old == new:
        return now
    names = [field.name for field in fields(new)]
    changed = {
        name: getattr(new, name) for name in names if getattr(old, name) != getattr(new, name)
    }
    return replace(now, **changed)


def _entries(
    servers: Iterable[Server | None], service: Service
) -> Iterator[tuple[Endpoint, Server]]:
    for server in servers:
        if server is not None:
            yield (server.address.packed, service.port_of(server)), server
