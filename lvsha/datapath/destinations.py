"""Which of this director's real servers another director's record means.

The search is that of the kernel (``ip_vs_find_dest``): the service by mark, else as for a
packet; in it the server at the port of the record, then at port 0; of a firewall mark that does
not translate the other way round. Where the kernel finds none of FTP, because data connections
and templates have other ports than their service, its server at the same address is meant.
"""

from typing import Final

from lvsha.datapath.ftp import FTP_PORT
from lvsha.datapath.marks import Marks
from lvsha.datapath.memories import mark_of_template
from lvsha.datapath.service_table import ServiceTable
from lvsha.datapath.services import RealServer, ServiceIdentity, VirtualService
from lvsha.model import TEMPLATE_BIT, ForwardMethod, Protocol, virtual_of

_TCP: Final = int(Protocol.TCP)


class Destinations:
    """The services of a director, as records speak of them."""

    def __init__(self, services: ServiceTable, marks: Marks) -> None:
        self._services = services
        self._marks = marks

    def mark_of(self, key: bytes) -> int:
        """The firewall mark of a connection, or of a template's service; 0 for none."""
        if key[0] >= TEMPLATE_BIT:
            return mark_of_template(key)
        return self._marks.of(key) if self._marks.rules else 0

    @property
    def has_marks(self) -> bool:
        """Whether the mark of a connection depends on more than its virtual end."""
        return bool(self._marks.rules)

    def find(
        self, key: bytes, mark: int, address: bytes, port: int, method: ForwardMethod
    ) -> RealServer | None:
        """The server that a record means.

        Args:
            key: of a connection, or of a template without what an engine found.
            mark: of it, see `mark_of`.
            address: of the server there.
            port: of the server there.
            method: by which it is reached there.
        """
        if key[0] >= TEMPLATE_BIT:
            services = self._of_template(key, mark)
        else:
            service = self._services.find(key, mark)
            services = [] if service is None else [service]
        for service in services:
            server = _server(service, key, address, port, method)
            if server is not None:
                return server
        return self._leaving(key, mark, address, port) if self._services.leaving else None

    def _of_template(self, key: bytes, mark: int) -> list[VirtualService]:
        """The services whose template this may be."""
        found = [self._services.get(identity) for identity in _of_template(key, mark)]
        return [service for service in found if service is not None]

    def _leaving(self, key: bytes, mark: int, address: bytes, port: int) -> RealServer | None:
        """The leaving server that a record means, also of a service that is gone."""
        identities = _of_template(key, mark)
        if key[0] < TEMPLATE_BIT and not mark:
            virtual, _ = virtual_of(key)
            ends = (0, FTP_PORT) if key[1] == _TCP else (0,)
            identities += [ServiceIdentity(key[0], key[1], virtual, end) for end in ends]
        leaving = self._services.leaving
        found = leaving.find(identities, address, port)
        return leaving.find(identities, address, 0) if found is None else found


def _of_template(key: bytes, mark: int) -> list[ServiceIdentity]:
    """The services whose template this may be, those of a connection first; FTP's has port 0."""
    family, protocol = key[0] & ~TEMPLATE_BIT, key[1]
    if mark:
        return [ServiceIdentity(family, _TCP, mark=mark)]
    virtual, port = virtual_of(key)
    identities = [ServiceIdentity(family, protocol, virtual, port)]
    if not port and protocol == _TCP:
        identities.append(ServiceIdentity(family, protocol, virtual, FTP_PORT))
    return identities


def _server(
    service: VirtualService, key: bytes, address: bytes, port: int, method: ForwardMethod
) -> RealServer | None:
    if method is ForwardMethod.BYPASS and not any(address):
        return service.bypass_server()
    ports = (port, 0)
    if service.identity.mark and method is not ForwardMethod.NAT:
        ports = (0, port)
    for each in ports:
        server = service.server(address, each)
        if server is not None:
            return server
    if key[0] >= TEMPLATE_BIT:
        any_port = not port  # of a template that stands for more than the service's own
    else:
        any_port = service.port == FTP_PORT != int.from_bytes(key[-2:])
    if not any_port:
        return None
    return next((each for each in service.servers if each.address == address), None)
