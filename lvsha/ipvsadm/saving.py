"""The commands that make a table of services what it is: what ``ipvsadm -S`` prints.

``ipvsadm -R`` takes them back. As with the kernel's tool, thresholds, time-outs, daemons and
connections are not among them.
"""

from collections.abc import Iterator
from typing import Final

from lvsha.datapath.tunnels import Tunnel, TunnelChecksum, TunnelType
from lvsha.ipvsadm.listing import endpoint, flags_text, netmask_text
from lvsha.ipvsadm.names import Names
from lvsha.ipvsadm.views import ServerView, ServiceView
from lvsha.model import ForwardMethod, Protocol

_TRANSPORTS: Final = {
    Protocol.TCP: "-t",
    Protocol.UDP: "-u",
    Protocol.SCTP: "--sctp-service",
}
_METHODS: Final = {ForwardMethod.NAT: "-m", ForwardMethod.TUNNEL: "-i"}
_CHECKSUMS: Final = {
    TunnelChecksum.NONE: "--tun-nocsum",
    TunnelChecksum.CHECKSUM: "--tun-csum",
    TunnelChecksum.REMOTE: "--tun-remcsum",
}


def save_lines(service: ServiceView, names: Names) -> Iterator[str]:
    """The commands for one service and its servers."""
    which = _which(service, names)
    words = ["-A", which, "-s", service.scheduler]
    if service.persistence:
        words += ["-p", str(service.persistence)]
        if service.netmask:
            words += ["-M", netmask_text(service.netmask)]
    if service.engine:
        words += ["--pe", service.engine]
    if service.one_packet:
        words.append("-o")
    if service.flags:
        words += ["-b", flags_text(service.flags)]
    yield " ".join(words)
    protocol = 0 if service.mark else service.protocol
    for server in service.servers:
        end = endpoint(server.address, server.port, protocol, names)
        method = _METHODS.get(server.method, "-g")
        yield f"-a {which} -r {end} {method} -w {server.weight}{_tunnel(server)}"


def _which(service: ServiceView, names: Names) -> str:
    if service.mark:
        return f"-f {service.mark}" + (" -6" if service.family == 6 else "")
    end = endpoint(service.address, service.port, service.protocol, names)
    return f"{_TRANSPORTS[Protocol(service.protocol)]} {end}"


def _tunnel(server: ServerView) -> str:
    if server.method is not ForwardMethod.TUNNEL:
        return ""
    tunnel: Tunnel = server.tunnel
    text = f" --tun-type {tunnel.type.name.lower()}"
    if tunnel.type is TunnelType.GUE:
        text += f" --tun-port {tunnel.port}"
    if tunnel.type is not TunnelType.IPIP:
        text += f" {_CHECKSUMS[tunnel.checksum]}"
    return text
