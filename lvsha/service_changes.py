"""Bring a running director's services from one pair file to another.

Only what the two files say differently is changed. What the operator has changed meanwhile
stays, unless the file says something else of it now: a weight stays as it was set while the
server's weight in the file is the same, and a server that was removed stays away while its
entry is. Nothing is cut off: what the file does not have any more retires
(`lvsha.retirement`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lvsha.build import (
    default_policy,
    server_options,
    service_identity,
    service_options,
    service_policy,
)
from lvsha.config import Pair, Service
from lvsha.datapath.director import Director
from lvsha.datapath.services import ServerOptions, ServiceIdentity
from lvsha.keeper import Endpoint
from lvsha.retirement import Retirement


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
    """What differs, first what is gone; services are told apart by what clients connect to."""
    before = {service_identity(service): service for service in old.services}
    after = {service_identity(service): service for service in new.services}
    return [
        *(ServiceChange(service, None) for key, service in before.items() if key not in after),
        *(
            ServiceChange(before.get(key), service)
            for key, service in after.items()
            if before.get(key) != service
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a pair file says of a server."""

    options: ServerOptions
    is_checked: bool

    def explains_absence(self, old: "_Entry") -> bool:
        """Whether a server that was there is not for a reason that still holds.

        Its checks have removed it, and bring it back when it is up; or the operator has.
        """
        return (self.is_checked and old.is_checked) or self == old

    def leaves_weight(self, old: "_Entry") -> bool:
        """Whether the weight that a server has was not given by the entry."""
        if old.is_checked:
            return self.is_checked
        return self.options.weight == old.options.weight


class ServiceChanges:
    """Carries changes out.

    Args:
        director: whose services.
        retirement: of what goes.
    """

    def __init__(self, director: Director, retirement: Retirement) -> None:
        self._services = director.services
        self._retirement = retirement

    def carry_out(self, change: ServiceChange, pair: Pair) -> None:
        """Carry out one of them, of a pair file that is followed from now on.

        Raises:
            AdministrationError: what the operator has made of the service does not go with it.
        """
        old, new = change.old, change.new
        if new is None:
            assert old is not None, "one file has it"
            self._retirement.retire(service_identity(old))
            return
        identity = service_identity(new)
        # Of a service that the operator has removed nothing is there.
        before = {} if old is None or self._services.get(identity) is None else dict(_servers(old))
        self._bring(old, new, pair)
        after = dict(_servers(new))
        for end, entry in after.items():
            self._bring_server(identity, end, before.get(end), entry)
        for end in before.keys() - after.keys():
            self._retirement.retire_server(identity, end)
        stood_in = None if old is None else _sorry_end(old)
        if stood_in is not None and stood_in != _sorry_end(new) and stood_in not in after:
            self._retirement.retire_server(identity, stood_in)

    def _bring(self, old: Service | None, new: Service, pair: Pair) -> None:
        """The service itself."""
        identity, options = service_identity(new), service_options(new)
        default = default_policy(pair)
        policy = service_policy(new, default)
        service = self._services.get(identity)
        if service is None:
            service = self._services.add(identity, options, new.name, policy)
        elif old is None or service_options(old) != options:
            self._services.edit(identity, options)
        if old is None or service_policy(old, default) != policy:
            service.policy = policy
        service.name = new.name
        self._retirement.keep(identity)

    def _bring_server(
        self, identity: ServiceIdentity, end: Endpoint, old: _Entry | None, new: _Entry
    ) -> None:
        """One server of it. What checks decide of its weight they decide afterwards."""
        service = self._services.get(identity)
        assert service is not None, "it was brought"
        listed = service.server(*end)
        self._retirement.keep_server(identity, end)
        if listed is None:
            if old is None or not new.explains_absence(old):
                self._services.add_server(identity, *end, new.options)
        elif old is None:
            self._services.edit_server(identity, *end, new.options)
        elif old != new:
            weight = listed.weight if new.leaves_weight(old) else new.options.weight
            self._services.edit_server(identity, *end, replace(new.options, weight=weight))


def _servers(service: Service) -> Iterator[tuple[Endpoint, _Entry]]:
    for server in service.servers:
        end = (server.address.packed, service.port_of(server))
        is_checked = bool(service.checks_of(server))
        yield end, _Entry(server_options(service, server), is_checked)


def _sorry_end(service: Service) -> Endpoint | None:
    sorry = service.sorry_server
    return None if sorry is None else (sorry.address.packed, service.port_of(sorry))
