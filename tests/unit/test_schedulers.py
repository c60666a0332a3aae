import pytest

from lvsha.datapath.services import RealServer, VirtualService
from lvsha.model import connection_key, parse_address
from tests.laboratory import V4, V6, Laboratory


def build(
    scheduler: str, *weights: int, flags: tuple[str, ...] = (), vip: str = V4
) -> tuple[Laboratory, VirtualService]:
    """Servers A, B, C ... with these weights, added in this order: the list is C, B, A."""
    laboratory = Laboratory()
    service = laboratory.service(vip, scheduler=scheduler, flags=flags)
    for number, weight in enumerate(weights):
        laboratory.server(service, f"10.1.0.{2 + number}", weight=weight)
    return laboratory, service


def name(server: RealServer | None) -> str:
    return "-" if server is None else "ABCDEF"[server.address[-1] - 2]


def draw(service: VirtualService, count: int, client: str = "198.51.100.7") -> str:
    key = connection_key(6, parse_address(client), 40000, service.address, 80)
    return "".join(name(service.scheduler.schedule(key)) for _ in range(count))


ALL = pytest.mark.parametrize("scheduler", ["rr", "wrr", "lc", "wlc", "sh"])


@ALL
def test_without_servers_nothing_is_chosen(scheduler: str) -> None:
    assert draw(build(scheduler)[1], 3) == "---"


@ALL
def test_servers_of_weight_zero_or_overloaded_are_never_chosen(scheduler: str) -> None:
    _, service = build(scheduler, 0, 1)
    service.servers[0].overloaded = True
    assert draw(service, 4) == "----"


def test_rr_takes_the_newest_first_and_goes_round() -> None:
    assert draw(build("rr", 1, 5, 9)[1], 7) == "CBACBAC"


def test_rr_skips_what_is_not_usable_and_ends_its_turn_at_the_last_one() -> None:
    laboratory, service = build("rr", 1, 1, 1)
    assert draw(service, 1) == "C"
    laboratory.director.edit_server(service.servers[1], 0)
    assert draw(service, 3) == "ACA"


def test_rr_goes_on_behind_the_predecessor_of_a_removed_server() -> None:
    laboratory, service = build("rr", 1, 1, 1)
    assert draw(service, 2) == "CB"
    laboratory.director.remove_server(service.servers[1])
    assert draw(service, 2) == "AC"


def test_rr_starts_anew_when_the_head_of_the_list_was_last_and_is_removed() -> None:
    laboratory, service = build("rr", 1, 1, 1)
    assert draw(service, 1) == "C"
    laboratory.director.remove_server(service.servers[0])
    assert draw(service, 3) == "BAB"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((4, 3, 2), "CBAABACBACBAABACBA"),
        ((1, 2, 4), "CBACCCBCBACCCB"),
        ((2, 4, 6), "CBACCBCBACCB"),
    ],
)
def test_wrr_gives_the_kernels_sequence(weights: tuple[int, ...], expected: str) -> None:
    assert draw(build("wrr", *weights)[1], len(expected)) == expected


def test_wrr_keeps_its_level_through_a_change_but_fits_it_to_the_new_step() -> None:
    laboratory, service = build("wrr", 8, 7)
    assert draw(service, 6) == "BAABAB"  # levels 1, 8, 7 and half of 6
    b, a = service.servers
    laboratory.director.edit_server(a, 9)
    laboratory.director.edit_server(b, 6)
    assert draw(service, 10) == "ABABAABABA"  # levels 7, 4, 1 again and again


def test_lc_counts_an_active_connection_257_times() -> None:
    _, service = build("lc", 1, 9)
    b, a = service.servers
    a.active, b.inactive = 1, 256
    assert draw(service, 1) == "B"
    b.inactive = 257
    assert draw(service, 1) == "B"
    b.inactive = 258
    assert draw(service, 1) == "A"


def test_wlc_compares_load_by_weight_and_the_first_wins_a_tie() -> None:
    _, service = build("wlc", 2, 1)
    b, a = service.servers
    a.active, b.active = 2, 1
    assert draw(service, 1) == "B"
    b.inactive = 1
    assert draw(service, 1) == "A"


@pytest.mark.parametrize("client", ["10.0.0.1", "192.168.1.100", "203.0.113.7"])
def test_sh_sends_clients_where_the_kernel_sends_them(client: str) -> None:
    # Slots 39, 89 and 124 of C1, B2, A3 dealt out in list order.
    assert draw(build("sh", 3, 2, 1)[1], 2, client) == "AA"


def test_sh_with_port_tells_connections_of_a_client_apart() -> None:
    _, service = build("sh", 1, 1, 1, flags=("sh-port",))
    keys = (connection_key(6, bytes(4), port, service.address, 80) for port in range(1, 100))
    assert {name(service.scheduler.schedule(key)) for key in keys} == {"A", "B", "C"}


@pytest.mark.parametrize(("flags", "expected"), [((), "-"), (("sh-fallback",), "B")])
def test_sh_refuses_where_its_server_is_down_unless_it_may_fall_back(
    flags: tuple[str, ...], expected: str
) -> None:
    _, service = build("sh", 3, 2, 1, flags=flags)
    c, b, a = service.servers
    assert draw(service, 1, "10.0.0.1") == "A"
    a.overloaded = c.overloaded = True
    assert draw(service, 1, "10.0.0.1") == expected
    b.overloaded = True
    assert draw(service, 1, "10.0.0.1") == "-"


def test_sh_folds_the_words_of_an_ipv6_address() -> None:
    laboratory = Laboratory()
    service = laboratory.service(V6, scheduler="sh")
    for number in range(4):
        laboratory.server(service, f"fd00:5::{2 + number:x}")
    same = ("2001:db8::1", "0:0:2001:db8::1")
    keys = [connection_key(6, parse_address(c), 1, service.address, 80) for c in same]
    assert service.scheduler.schedule(keys[0]) is service.scheduler.schedule(keys[1])


def test_sh_starves_the_last_where_weights_fill_the_table() -> None:
    _, service = build("sh", 1, 300)
    keys = (connection_key(6, n.to_bytes(4), 1, service.address, 80) for n in range(3000))
    assert {name(service.scheduler.schedule(key)) for key in keys} == {"B"}
