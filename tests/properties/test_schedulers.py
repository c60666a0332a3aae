"""Schedulers against naive twins that are written from the description, not from the code."""

import itertools
from collections.abc import Callable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.services import RealServer
from lvsha.model import connection_key, parse_address
from tests.laboratory import V4, Laboratory

Twin = Callable[[list[RealServer], bytes], RealServer | None]
CLIENT = parse_address("198.51.100.7")


def usable(server: RealServer) -> bool:
    return server.weight > 0 and not server.overloaded


class RoundRobinTwin:
    """A mark on the list; a removed mark falls back to the one before it."""

    def __init__(self) -> None:
        self.mark: RealServer | None = None
        self.seen: list[RealServer] = []

    def __call__(self, servers: list[RealServer], _key: bytes) -> RealServer | None:
        before = (
            self.seen.index(self.mark) if self.mark is not None and self.mark in self.seen else -1
        )
        while self.mark is not None and self.mark not in servers:
            before -= 1
            self.mark = self.seen[before] if before >= 0 else None
        self.seen = list(servers)
        at = -1 if self.mark is None else servers.index(self.mark)
        for server in servers[at + 1 :] + servers[: at + 1]:
            if usable(server):
                self.mark = server
                return server
        return None


def least_connection(servers: list[RealServer], _key: bytes) -> RealServer | None:
    best = None
    for server in servers:
        load = 256 * server.active + server.active + server.inactive
        if usable(server) and (best is None or load < best[0]):
            best = (load, server)
    return None if best is None else best[1]


def weighted_least_connection(servers: list[RealServer], _key: bytes) -> RealServer | None:
    best = None
    for server in filter(usable, servers):
        load = 257 * server.active + server.inactive
        if best is None or best[0] * server.weight > load * best[1].weight:
            best = (load, server)
    return None if best is None else best[1]


def source_hash(servers: list[RealServer], key: bytes) -> RealServer | None:
    if not servers:
        return None
    slots: list[RealServer] = []
    for server in itertools.cycle(servers):
        slots += [server] * max(1, server.weight)
        if len(slots) >= 256:
            break
    word = int.from_bytes(key[2:6])
    chosen = slots[(word * 0x61C88647 % 2**32) >> 24]
    return chosen if usable(chosen) else None


TWINS: dict[str, Callable[[], Twin]] = {
    "rr": RoundRobinTwin,
    "lc": lambda: least_connection,
    "wlc": lambda: weighted_least_connection,
    "sh": lambda: source_hash,
}

steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "open", "close", "add", "remove", "edit", "overload"]),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=40,
)


@given(st.sampled_from(sorted(TWINS)), st.lists(st.integers(0, 5), max_size=4), steps)
def test_a_scheduler_chooses_what_its_description_says(
    name: str, weights: list[int], sequence: list[tuple[str, int, int]]
) -> None:
    laboratory = Laboratory()
    service = laboratory.service(scheduler=name)
    for number, weight in enumerate(weights):
        laboratory.server(service, f"10.1.0.{2 + number}", weight=weight)
    twin = TWINS[name]()
    for clients, (operation, which, amount) in enumerate(sequence):
        server = service.servers[which % len(service.servers)] if service.servers else None
        match operation:
            case "open":
                client = (int.from_bytes(CLIENT) + 7919 * clients).to_bytes(4)
                key = connection_key(6, client, 1024 + clients, parse_address(V4), 80)
                expected = twin(service.servers, key)
                assert service.scheduler.schedule(key) is expected
                if expected is not None:
                    expected.active += amount % 2
                    expected.inactive += 1 - amount % 2
            case "add":
                laboratory.server(service, f"10.1.1.{clients}", weight=amount)
            case "close" if server is not None:
                server.active = max(0, server.active - 1)
            case "remove" if server is not None:
                laboratory.director.remove_server(server)
            case "edit" if server is not None:
                laboratory.director.edit_server(server, amount)
            case "overload" if server is not None:
                server.overloaded = bool(amount % 2)


def rounds(weights: list[int]) -> Iterator[int]:
    """Indices in the order of a whole wrr round, straight from the definition."""
    step = max(d for d in range(1, max(weights) + 1) if all(w % d == 0 for w in weights))
    for level in range(max(weights), 0, -step):
        yield from (index for index, weight in enumerate(weights) if weight >= level)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 3))
def test_each_wrr_round_gives_every_server_its_weight_in_the_order_of_levels(
    weights: list[int], times: int
) -> None:
    laboratory = Laboratory()
    service = laboratory.service(scheduler="wrr")
    for number, weight in enumerate(weights):
        laboratory.server(service, f"10.1.0.{2 + number}", weight=weight)
    in_list_order = [server.weight for server in service.servers]
    expected = list(rounds(in_list_order))
    chosen = [service.scheduler.schedule(b"") for _ in range((times + 1) * len(expected))]
    indices = [service.servers.index(server) for server in chosen if server is not None]
    assert len(indices) == len(chosen)
    # The first round may begin in the middle, because the current weight survives changes.
    start = next(
        at
        for at in range(len(expected))
        if indices[: len(expected)] == expected[at:] + expected[:at]
    )
    assert indices[len(expected) - start :][: len(expected)] == expected


@given(st.integers(1, 5))
def test_wrr_without_a_usable_server_chooses_none_and_ends(count: int) -> None:
    laboratory = Laboratory()
    service = laboratory.service(scheduler="wrr")
    for number in range(count):
        laboratory.server(service, f"10.1.0.{2 + number}", weight=number).overloaded = True
    assert [service.scheduler.schedule(b"") for _ in range(3)] == [None] * 3
