"""What a director tells Prometheus, made from what ``lvsha status --json`` shows.

Nothing is counted here: a metric is a number of the status under a name. A snapshot of
many servers takes a while to write, so that is done in a thread; see `lvsha.metrics_server`.

Names and labels are promised as those of the status are: see docs/operating.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lvsha.model import VrrpState, Witness

Status = Mapping[str, Any]
Samples = Iterable[tuple[Sequence[str], float]]

_SERVER_GAUGES: Final = {
    "weight": "weight",
    "active": "active connections",
    "inactive": "inactive connections",
    "persistent": "persistence templates",
}
_SERVER_COUNTERS: Final = {
    "connections": "connections opened",
    "in_packets": "packets from clients",
    "out_packets": "packets to clients",
    "in_bytes": "octets of packets from clients",
    "out_bytes": "octets of packets to clients",
}


def render(status: Status) -> bytes:
    """The metrics in Prometheus's text format.

    Args:
        status: the answer of the command ``status``.
    """
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    return generate_latest(registry)


class _Snapshot(Collector):
    """One status, as the library wants to have it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield from _of_the_process(status)
        yield from _of_routers(status["routers"])
        yield from _of_groups(status["tracking"]["groups"])
        yield from _of_trackers(status["tracking"]["trackers"])
        yield from _of_second_path(status["second_path"], status["routers"])
        yield from _of_sync(status["sync"])
        yield from _of_services(status["services"])
        yield from _of_takeovers(status["takeovers"])


def _gauge(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"lvsha_{name}", text, labels=labels)
    for values, number in samples:
        family.add_metric(values, float(number))
    return family


def _counter(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(f"lvsha_{name}", text, labels=labels)
    for values, number in samples:
        family.add_metric(values, float(number))
    return family


def _counts(things: Mapping[str, Mapping[str, Any]]) -> Samples:
    """The counters of several things, by the names of both."""
    for name, counts in things.items():
        for event, number in counts.items():
            # Some status has tables between its counters.
            if isinstance(number, int | float):
                yield (name, event), number


def _of_the_process(status: Status) -> Iterator[Metric]:
    life = status["life"]
    about = (status["node"], status["version"], status["configuration"])
    yield _gauge(
        "info", "The director; always 1", ("node", "version", "configuration"), [(about, 1)]
    )
    yield _gauge("uptime_seconds", "Since its start", (), [((), status["uptime_seconds"])])
    yield _gauge("connections", "In the table", (), [((), status["connections"])])
    yield _gauge(
        "lateness_max_seconds",
        "The longest time by which the loop that forwards was late",
        (),
        [((), life["lateness_max_seconds"])],
    )
    yield _gauge(
        "hung", "Whether it does not forward any more", (), [((), life["fault"] is not None)]
    )
    drops = [((reason,), number) for reason, number in status["drops"].items()]
    yield _counter("drops", "Frames dropped, by reason", ("reason",), drops)
    parts = {
        **status["counters"],
        "life": life["counters"],
        "events": status["tracking"]["events"]["counters"],
        "notifications": status["tracking"]["notifications"]["counters"],
        "daemons": status["daemons"]["counters"],
        "fencing": _fencing_of(status["second_path"]),
    }
    yield _counter("events", "What a part has met", ("part", "event"), _counts(parts))


def _of_routers(routers: Mapping[str, Status]) -> Iterator[Metric]:
    yield _gauge(
        "router_state",
        "1 for the state that a virtual router is in",
        ("router", "state"),
        [
            ((name, state.name), router["state"] == state.name)
            for name, router in routers.items()
            for state in VrrpState
        ],
    )
    for key, metric, text in (
        ("priority", "router_priority", "VRRP priority, with what trackers add and take away"),
        ("since_seconds", "router_state_seconds", "For how long it has been in its state"),
        ("addresses_held", "router_addresses_held", "Whether its addresses are on this node"),
    ):
        found = [
            ((name,), router[key])
            for name, router in routers.items()
            if router.get(key) is not None
        ]
        yield _gauge(metric, text, ("router",), found)
    yield _gauge(
        "router_peer_heard_seconds",
        "Since another speaker was heard last",
        ("router",),
        [
            ((name,), router["peer"]["heard_seconds_ago"])
            for name, router in routers.items()
            if router["peer"] is not None
        ],
    )
    for key, metric, text, label in (
        ("transitions", "router_transitions", "Changes of state, by reason", "reason"),
        ("counters", "router_events", "What its speaker has met", "event"),
    ):
        counted = {name: router.get(key, {}) for name, router in routers.items()}
        yield _counter(metric, text, ("router", label), _counts(counted))


def _of_groups(groups: Mapping[str, Status]) -> Iterator[Metric]:
    yield _gauge(
        "group_state",
        "1 for the state that the virtual routers of a group are in",
        ("group", "state"),
        [
            ((name, state.name), group["state"] == state.name)
            for name, group in groups.items()
            for state in VrrpState
        ],
    )


def _of_trackers(trackers: Mapping[str, Status]) -> Iterator[Metric]:
    yield _gauge(
        "tracker_up",
        "Whether what is tracked is up",
        ("tracker", "kind"),
        [((name, one["kind"]), one["state"] == "up") for name, one in trackers.items()],
    )


def _fencing_of(second_path: Status | None) -> Status:
    fencing = None if second_path is None else second_path["fencing"]
    return {} if fencing is None else fencing["counters"]


def _of_second_path(second_path: Status | None, routers: Mapping[str, Status]) -> Iterator[Metric]:
    if second_path is None:
        return
    yield _gauge(
        "second_path_alarm",
        "Whether what is ruled of a virtual router needs somebody to look",
        ("router",),
        [
            ((name,), router["second_path"]["alarm"])
            for name, router in routers.items()
            if "second_path" in router
        ],
    )
    witness = Witness[second_path["witness_state"].upper()]
    if witness is not Witness.NONE:
        up = witness is Witness.REACHABLE
        yield _gauge("witness_up", "Whether the witness answers", (), [((), up)])


def _of_sync(sync: Mapping[str, Status]) -> Iterator[Metric]:
    for key, text in (
        ("connections", "Connections of a sync id on this node"),
        ("established", "Those that are established"),
        ("complete", "Whether the copy is complete"),
        ("at_risk", "Established connections that no peer knows"),
    ):
        yield _gauge(
            f"sync_{key}",
            text,
            ("sync_id",),
            [((number,), one[key]) for number, one in sync.items()],
        )
    yield _gauge(
        "sync_leads",
        "Whether this node is the source of the connections",
        ("sync_id",),
        [((number,), one["role"] == "LEAD") for number, one in sync.items()],
    )
    peers = [
        ((number, peer["node"]), peer) for number, one in sync.items() for peer in one["peers"]
    ]
    for key, metric, text, scale in (
        ("heard_ms_ago", "heard_seconds", "Since the peer was heard last", 1000),
        ("connections", "connections", "Connections that the peer has", 1),
        ("coverage", "coverage", "Share of the established that would survive there", 1),
        ("lag_connections", "lag_connections", "Connections of which it has not heard", 1),
        ("lag_ms", "lag_seconds", "Age of the oldest change of which it has not heard", 1000),
        ("datagrams_lost", "datagrams_lost", "Datagrams from the peer that never came", 1),
        ("datagrams_repaired", "datagrams_repaired", "Datagrams that came when asked for", 1),
    ):
        samples = [
            (labels, peer[key] / scale) for labels, peer in peers if peer.get(key) is not None
        ]
        make = _counter if key.startswith("datagrams") else _gauge
        yield make(f"sync_peer_{metric}", text, ("sync_id", "peer"), samples)
    counted = {number: one["counters"] for number, one in sync.items()}
    yield _counter("sync_events", "What the sync has met", ("sync_id", "event"), _counts(counted))


def _of_services(services: Mapping[str, Status]) -> Iterator[Metric]:
    checked = [(name, one["health"]) for name, one in services.items() if one["health"] is not None]
    yield _gauge(
        "service_quorum",
        "Whether enough servers are up",
        ("service",),
        [((name,), health["quorum"] == "reached") for name, health in checked],
    )
    yield _gauge(
        "service_weight_up",
        "The weight of the servers that are up",
        ("service",),
        [((name,), health["weight_up"]) for name, health in checked],
    )
    servers = [
        ((name, server["address"]), server)
        for name, service in services.items()
        for server in service["servers"]
    ]
    yield _gauge(
        "server_up",
        "Whether the checks of a server have passed",
        ("service", "server"),
        [
            (labels, server["health"]["opinion"] == "up")
            for labels, server in servers
            if server.get("health") is not None
        ],
    )
    for table, make in ((_SERVER_GAUGES, _gauge), (_SERVER_COUNTERS, _counter)):
        for key, text in table.items():
            yield make(
                f"server_{key}",
                f"Of a real server: {text}",
                ("service", "server"),
                [(labels, server[key]) for labels, server in servers if key in server],
            )


def _of_takeovers(takeovers: Mapping[str, Status]) -> Iterator[Metric]:
    counted = {name: one["counters"] for name, one in takeovers.items()}
    yield _counter(
        "takeover_events", "What was met in takeovers", ("router", "event"), _counts(counted)
    )
