"""Under which key the template of a client stands.

A persistent service keeps a client, or a network of clients, at one server: the template
says which. Whoever opens a connection, and whoever takes one over from another director,
finds the template by the key that is made here.
"""

from typing import Final

from lvsha.datapath.ftp import FTP_PORT
from lvsha.datapath.services import VirtualService
from lvsha.model import Protocol

_ANY_PORT: Final = bytes(2)


def bare_template_key(service: VirtualService, key: bytes) -> bytes:
    """The key of the template of a client, laid out as that of a connection.

    It has the client's masked address, and what it keeps to: that is the service's own
    port; all ports, with FTP and where the service stands for all; or the firewall mark,
    written where the virtual address would be.
    """
    size = (len(key) - 6) // 2
    client, virtual = key[2 : 2 + size], key[2 + size : 2 + 2 * size]
    netmask = service.options.netmask
    if netmask:
        masked = int.from_bytes(client) & int.from_bytes(netmask)
        client = masked.to_bytes(size)
    protocol, port = key[1:2], _ANY_PORT
    if service.identity.mark:
        protocol = bytes((Protocol.IP,))
        virtual = service.identity.mark.to_bytes(4) + bytes(size - 4)
    elif int.from_bytes(key[-2:]) == service.port != FTP_PORT:
        port = key[-2:]
    return key[:1] + protocol + client + virtual + _ANY_PORT + port
