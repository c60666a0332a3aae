"""Names of hosts and ports, as seen by who must not wait for a name server.

A director never looks a name up: that takes as long as a name server likes. So names are a
seam. `NoNames` knows none and makes every listing numeric. `KnownNames` knows those that it
was told and remembers what else it was asked for, so that whoever may wait looks these up
and asks again. `RecordedNames` are those of the two files that hold names on every machine.

What always holds: asking never waits and never raises. Addresses are bytes in network order.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from lvsha.model import Protocol as Transport


class Names(Protocol):
    """What a name stands for, and what something is called."""

    def address(self, host: str, family: int, /) -> bytes | None:
        """The address of a host in family 4 or 6."""

    def port(self, name: str, protocol: int, /) -> int | None:
        """The port of a service in the services database."""

    def host(self, address: bytes, /) -> str | None:
        """What the host with this address is called."""

    def service(self, port: int, protocol: int, /) -> str | None:
        """What the services database calls a port of this protocol."""


class NoNames:
    """Nothing has a name."""

    def address(self, _host: str, _family: int, /) -> bytes | None:
        """None."""
        return None

    def port(self, _name: str, _protocol: int, /) -> int | None:
        """None."""
        return None

    def host(self, _address: bytes, /) -> str | None:
        """None."""
        return None

    def service(self, _port: int, _protocol: int, /) -> str | None:
        """None."""
        return None


@dataclass(slots=True)
class KnownNames:
    """The names that were looked up before.

    Attributes:
        addresses: by host name and family.
        ports: by name and protocol.
        hosts: by address.
        services: by port and protocol.
        asked_hosts, asked_services: what `host` and `service` were asked for and did not
            know.
    """

    addresses: dict[tuple[str, int], bytes | None] = field(default_factory=dict)
    ports: dict[tuple[str, int], int | None] = field(default_factory=dict)
    hosts: dict[bytes, str | None] = field(default_factory=dict)
    services: dict[tuple[int, int], str | None] = field(default_factory=dict)
    asked_hosts: set[bytes] = field(default_factory=set)
    asked_services: set[tuple[int, int]] = field(default_factory=set)

    def address(self, host: str, family: int, /) -> bytes | None:
        """The address of a host, if it was told."""
        return self.addresses.get((host, family))

    def port(self, name: str, protocol: int, /) -> int | None:
        """The port of a service, if it was told."""
        return self.ports.get((name, protocol))

    def host(self, address: bytes, /) -> str | None:
        """The name of a host, if it was told."""
        if address not in self.hosts:
            self.asked_hosts.add(address)
        return self.hosts.get(address)

    def service(self, port: int, protocol: int, /) -> str | None:
        """The name of a port, if it was told."""
        if (port, protocol) not in self.services:
            self.asked_services.add((port, protocol))
        return self.services.get((port, protocol))


class RememberedNames:
    """Passes questions on and keeps the answers, to tell them to `KnownNames`.

    Args:
        names: who knows.
    """

    def __init__(self, names: Names) -> None:
        self.known = KnownNames()
        self._names = names

    def address(self, host: str, family: int, /) -> bytes | None:
        """The address of a host."""
        if (host, family) not in self.known.addresses:
            self.known.addresses[host, family] = self._names.address(host, family)
        return self.known.addresses[host, family]

    def port(self, name: str, protocol: int, /) -> int | None:
        """The port of a service."""
        if (name, protocol) not in self.known.ports:
            self.known.ports[name, protocol] = self._names.port(name, protocol)
        return self.known.ports[name, protocol]

    def host(self, address: bytes, /) -> str | None:
        """The name of a host."""
        if address not in self.known.hosts:
            self.known.hosts[address] = self._names.host(address)
        return self.known.hosts[address]

    def service(self, port: int, protocol: int, /) -> str | None:
        """The name of a port."""
        if (port, protocol) not in self.known.services:
            self.known.services[port, protocol] = self._names.service(port, protocol)
        return self.known.services[port, protocol]


class RecordedNames:
    """The names of a hosts file and a services file.

    Args:
        hosts: the text of one in the form of ``/etc/hosts``.
        services: lines in the form of ``/etc/services``.
    """

    def __init__(self, hosts: str, services: Iterable[str]) -> None:
        self._hosts: dict[bytes, str] = {}
        self._addresses: dict[tuple[str, int], bytes] = {}
        self._services: dict[tuple[int, int], str] = {}
        self._ports: dict[tuple[str, int], int] = {}
        for line in hosts.splitlines():
            self._take_host(line.partition("#")[0].split())
        for line in services:
            self._take_service(line.partition("#")[0].split())

    def _take_host(self, words: list[str]) -> None:
        try:
            address = ipaddress.ip_address(words[0] if words else "")
        except ValueError:
            return
        for name in words[1:]:
            self._hosts.setdefault(address.packed, name)
            self._addresses.setdefault((name, address.version), address.packed)

    def _take_service(self, words: list[str]) -> None:
        port, _, transport = "".join(words[1:2]).partition("/")
        if not port.isdecimal() or transport.upper() not in Transport.__members__:
            return
        protocol = int(Transport[transport.upper()])
        self._services.setdefault((int(port), protocol), words[0])
        for name in (words[0], *words[2:]):
            self._ports.setdefault((name, protocol), int(port))

    def address(self, host: str, family: int, /) -> bytes | None:
        """The address of a host."""
        return self._addresses.get((host, family))

    def port(self, name: str, protocol: int, /) -> int | None:
        """The port of a service."""
        return self._ports.get((name, protocol))

    def host(self, address: bytes, /) -> str | None:
        """The first name of a host."""
        return self._hosts.get(address)

    def service(self, port: int, protocol: int, /) -> str | None:
        """The first name of a port."""
        return self._services.get((port, protocol))
