"""What ``lvsha status`` shows of a virtual service and its real servers."""

from lvsha.datapath.director import Director
from lvsha.datapath.service_table import describe
from lvsha.datapath.services import RealServer, VirtualService
from lvsha.model import Protocol, format_endpoint
from lvsha.node_health import NodeHealth


def service_status(
    service: VirtualService, director: Director, health: NodeHealth
) -> dict[str, object]:
    """A service as JSON-able values."""
    return {
        "address": _endpoint(service),
        "protocol": _protocol_name(service),
        "scheduler": service.options.scheduler,
        "held": director.holds(service.address),
        "tell": str(service.policy.tell),
        "unknown": service.policy.unknown.value,
        "at_risk": service.at_risk,
        "health": health.status(service),
        "servers": health.annotated(
            service, [_server_status(server) for server in service.servers]
        ),
    }


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
