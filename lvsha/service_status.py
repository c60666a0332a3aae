"""What ``lvsha status`` shows of a virtual service and its real servers."""

from lvsha.datapath.director import Director
from lvsha.datapath.service_table import describe
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.model import Protocol, format_endpoint
from lvsha.node_health import NodeHealth
from lvsha.turns import Turns


async def service_status(
    service: VirtualService,
    director: Director,
    health: NodeHealth | None,
    turns: Turns,
) -> dict[str, object]:
    """A service as JSON-able values; its servers may change meanwhile.

    Args:
        service: which.
        director: it runs there.
        health: what its checks find; None of a service that is gone.
        turns: of the work that this is a part of.
    """
    health_status = None if health is None else health.status(service)
    is_checked = health_status is not None
    return {
        "address": _endpoint(service),
        "protocol": _protocol_name(service),
        "scheduler": service.options.scheduler,
        "held": director.holds(service.address),
        "tell": str(service.policy.tell),
        "unknown": service.policy.unknown.value,
        "at_risk": service.at_risk,
        "health": health_status,
        "servers": await _servers(service, health if is_checked else None, turns),
    }


async def _servers(
    service: VirtualService,
    health: NodeHealth | None,
    turns: Turns,
) -> list[dict[str, object]]:
    """Those that are listed, each with its health; those that leave, and that checks removed."""
    found: dict[str, dict[str, object]] = {}
    for address, told in () if health is None else health.of_servers(service):
        found[address] = told
        await turns.pass_on()
    servers: list[dict[str, object]] = []
    for server in list(service.servers):
        status = _server_status(server)
        if health is not None:
            status["health"] = found.pop(str(server), None)
        servers.append(status)
        await turns.pass_on()
    servers += [_server_status(server) for server in service.leaving]
    return servers + [{"address": address, "health": told} for address, told in found.items()]


def _endpoint(service: VirtualService) -> str:
    if service.identity.mark:
        return describe(service.identity)
    return format_endpoint(service.address, service.port)


def _protocol_name(service: VirtualService) -> str | None:
    """The protocol of a service; a firewall mark stands for all."""
    if service.identity.mark:
        return None
    return Protocol(service.identity.protocol).name.lower()


def _server_status(server: RealServer) -> dict[str, object]:
    counted, rates = server.counted(), server.rates
    return {
        "address": str(server),
        "method": server.method.name.lower(),
        "weight": server.weight,
        "leaving": not server.available,
        "active": server.active,
        "inactive": server.inactive,
        "persistent": server.persistent,
        "connections": counted.connections,
        "in_packets": counted.in_packets,
        "out_packets": counted.out_packets,
        "in_bytes": counted.in_bytes,
        "out_bytes": counted.out_bytes,
        "connections_per_second": rates.connections,
    }
