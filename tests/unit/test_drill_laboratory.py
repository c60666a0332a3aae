"""The plan of a drill's networks, its options, and the far end of its tunnels."""

import io
import ipaddress
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lvsha.config import parse_pair
from lvsha.drill import laboratory, standstill
from lvsha.drill.client_program import describe_tick
from lvsha.drill.directors import Director, parse_event, parse_status
from lvsha.drill.exercise import EXIT_OPTIONS, run_drill
from lvsha.drill.laboratory import DIRECTORS, REAL_SERVERS, Plan
from lvsha.drill.options import FAMILIES, METHODS, DrillOptions, Family, Method, decode_options
from lvsha.drill.seclusion import explain
from lvsha.drill.standstill import watch
from lvsha.drill.tunnelend import inner_packet
from lvsha.errors import ConfigError
from lvsha.ipvsadm.arguments import parse
from lvsha.ipvsadm.names import NoNames
from lvsha.ipvsadm.requests import EditServer
from lvsha.model import Protocol

EVERY_PLAN = [Plan(method, family) for method in METHODS for family in FAMILIES]


def name_of(plan: Plan) -> str:
    return f"{plan.method}{plan.family}"


@pytest.mark.parametrize("plan", EVERY_PLAN, ids=name_of)
def test_pair_file_is_one_that_directors_accept(plan: Plan) -> None:
    pair = parse_pair(plan.pair_file(0.1), "pair.toml")
    (router,) = pair.virtual_routers
    assert router.advert_interval == 0.1
    assert router.family == plan.family
    assert set(pair.nodes) == set(DIRECTORS)
    assert {service.protocol for service in pair.services} == {"tcp", "udp"}
    for service in pair.services:
        assert str(service.address) == plan.virtual
        assert service.method == plan.method
        assert len(service.servers) == len(REAL_SERVERS)
    assert [placed.interface for placed in router.addresses] == (
        ["outside", "inside"] if plan.method == "nat" else ["outside"]
    )


@pytest.mark.parametrize("plan", EVERY_PLAN, ids=name_of)
def test_addresses_differ_and_lie_in_their_networks(plan: Plan) -> None:
    seen = [plan.virtual, plan.gateway]
    for wire, hosts in plan.attachments.items():
        for host in hosts:
            address = plan.address(wire, host)
            assert ipaddress.ip_address(address) in plan.networks[wire]
            seen.append(address)
    assert len(set(seen)) == len(seen)


MUTUAL = [Plan(method, family, mutual=True) for method in METHODS for family in FAMILIES]


@pytest.mark.parametrize("plan", MUTUAL, ids=name_of)
def test_each_of_two_that_back_each_other_up_is_the_home_of_a_router(plan: Plan) -> None:
    pair = parse_pair(plan.pair_file(0.1), "pair.toml")
    homes = []
    for router in pair.virtual_routers:
        priorities = {name: node.priority_of(router.name) for name, node in pair.nodes.items()}
        homes.append(max(priorities, key=lambda name: priorities[name]))
    assert homes == list(DIRECTORS)
    assert len({router.sync_id for router in pair.virtual_routers}) == 2
    forwarded = [
        (str(service.address), {str(server.address) for server in service.servers})
        for service in pair.services
    ]
    assert [address for address, _ in forwarded] == [v for v in plan.virtuals for _ in range(2)]
    (_, first), *_, (_, last) = forwarded
    # With NAT the address says by which gateway a server is to answer.
    assert first.isdisjoint(last) == (plan.method == "nat")


@pytest.mark.parametrize("plan", MUTUAL, ids=name_of)
def test_the_addresses_of_two_routers_differ_from_each_other_and_from_all_hosts(plan: Plan) -> None:
    seen = [*plan.virtuals, *map(plan.gateway_of, plan.routers)]
    seen += [plan.address(wire, host) for wire, hosts in plan.attachments.items() for host in hosts]
    if plan.method == "nat":
        seen += [plan.real_address(plan.routers[1], name) for name in REAL_SERVERS]
    assert len(set(seen)) == len(seen)


def test_a_server_is_drained_in_the_services_of_both_routers() -> None:
    words = [list(each) for each in Plan("nat", 4, mutual=True).draining()]
    ends = {(each[2], each[4]) for each in words}
    assert ends == {
        ("192.0.2.10:8000", "10.1.0.11:8000"),
        ("192.0.2.10:8001", "10.1.0.11:8001"),
        ("192.0.2.20:8000", "10.1.0.21:8000"),
        ("192.0.2.20:8001", "10.1.0.21:8001"),
    }


def test_addresses_read_alike_in_both_families() -> None:
    assert Plan("nat", 4).virtual == "192.0.2.10"
    assert Plan("nat", 6).virtual == "2001:db8:0:1::10"


def test_client_reaches_the_inside_only_where_servers_answer_directly() -> None:
    assert "client" not in Plan("nat", 4).attachments["inside"]
    assert "client" in Plan("dr", 4).attachments["inside"]


@pytest.mark.parametrize("plan", EVERY_PLAN, ids=name_of)
def test_names_of_interfaces_fit_the_kernel(plan: Plan) -> None:
    for wire, hosts in plan.attachments.items():
        assert all(len(laboratory.cable(wire, host)) <= 15 for host in hosts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_options_survive_the_way_into_the_private_world(method: Method, family: Family) -> None:
    options = DrillOptions(
        method=method, family=family, directory=Path("/a"), html=Path("/b/c.html"), churn=2.5
    )
    assert decode_options(options.encode()) == options


def test_paths_of_options_become_absolute() -> None:
    assert decode_options(DrillOptions().encode()).directory == Path.cwd() / "drill"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "ipip"}, "--method"),
        ({"family": 5}, "--family"),
        ({"failure": "fire"}, "--failure"),
        ({"streams": -1}, "--streams"),
        ({"idle": 1_000_000}, "--idle"),
        ({"churn": float("nan")}, "--churn"),
        ({"advert_interval": 0.0}, "--advert-interval"),
        ({"observe": 0.0}, "--observe"),
        ({"sync_loss": -1}, "--sync-loss"),
        ({"sync_loss": 91}, "--sync-loss"),
    ],
)
def test_option_out_of_range_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(DrillOptions(), **changes).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", EVERY_PLAN, ids=name_of)
def test_a_server_is_drained_as_ipvsadm_is_told_and_keeps_its_method(plan: Plan) -> None:
    commands = [parse(list(words), NoNames()) for words in plan.draining()]
    services = parse_pair(plan.pair_file(0.1), "pair.toml").services
    assert len(commands) == len(services)
    for command, service in zip(commands, services, strict=True):
        assert isinstance(command, EditServer)
        assert service.address is not None
        own = (service.protocol, service.address.packed, service.port)
        identity = command.identity
        assert (Protocol(identity.protocol).name.lower(), identity.address, identity.port) == own
        assert command.address == service.servers[0].address.packed
        assert command.options.weight == 0
        assert command.options.method.name.lower().startswith(service.method[0])


def test_counters_of_other_tables_are_not_those_of_the_drill() -> None:
    listed = (
        '{"nftables": [{"metainfo": {"version": "1"}},'
        ' {"counter": {"table": "drill", "name": "passed", "packets": 7, "bytes": 9}},'
        ' {"counter": {"table": "lvsha", "name": "passed", "packets": 1, "bytes": 1}},'
        ' {"counter": {"table": "drill", "name": "dropped", "packets": 2, "bytes": 3}}]}'
    )
    assert laboratory.parse_counters(listed) == {"passed": 7, "dropped": 2}


def test_wrong_option_ends_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    options = DrillOptions(streams=-1, directory=tmp_path / "new")
    assert run_drill(options, Console()) == EXIT_OPTIONS
    assert "--streams" in capsys.readouterr().out
    assert not options.directory.exists()


VIRTUAL_4 = bytes((192, 0, 2, 10))
VIRTUAL_6 = ipaddress.ip_address("2001:db8:0:1::10").packed
INNER_4 = bytes((0x45, *range(1, 16))) + VIRTUAL_4 + b"payload"
INNER_6 = bytes((0x60, *range(1, 24))) + VIRTUAL_6 + b"payload"


def test_tunnel_end_takes_the_inner_packet_out() -> None:
    outer = bytes((0x45,)) + bytes(19)
    assert inner_packet(outer + INNER_4, [VIRTUAL_4]) == INNER_4
    with_options = bytes((0x47,)) + bytes(27)
    assert inner_packet(with_options + INNER_4, [VIRTUAL_4]) == INNER_4
    assert inner_packet(INNER_6, [VIRTUAL_6]) == INNER_6
    assert inner_packet(outer + INNER_4, [bytes((192, 0, 2, 20)), VIRTUAL_4]) == INNER_4


def test_tunnel_end_lets_nothing_in_that_is_not_for_the_virtual_address() -> None:
    outer = bytes((0x45,)) + bytes(19)
    stranger = INNER_4[:16] + bytes((10, 0, 0, 1)) + INNER_4[20:]
    assert inner_packet(outer + stranger, [VIRTUAL_4]) is None
    assert inner_packet(outer + b"\x65" + INNER_4[1:], [VIRTUAL_4]) is None
    assert inner_packet(INNER_6[:39], [VIRTUAL_6]) is None


@given(st.binary(max_size=100), st.sampled_from([VIRTUAL_4, VIRTUAL_6]))
def test_tunnel_end_survives_any_bytes(datagram: bytes, virtual: bytes) -> None:
    packet = inner_packet(datagram, [virtual])
    assert packet is None or virtual in packet


STATUS = (
    b'{"result": {"routers": {"web": {"state": "BACKUP"}},   "sync": {"1": {"complete": true}}}}\n'
)


def test_status_is_read_from_the_answer() -> None:
    status = parse_status(STATUS)
    assert status is not None
    assert (status.states, status.complete) == ({"web": "BACKUP"}, True)


@pytest.mark.parametrize("length", range(0, len(STATUS) - 2, 7))
def test_cut_answer_is_no_status(length: int) -> None:
    assert parse_status(STATUS[:length]) is None


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"result": 3}', b'{"error": "no"}', b"\xff"])
def test_other_answers_are_no_status(text: bytes) -> None:
    assert parse_status(text) is None


@pytest.mark.parametrize(
    ("line", "states"),
    [
        (b'{"event": "present", "routers": {"web": {"state": "BACKUP"}}}', [("web", "BACKUP")]),
        (
            b'{"event": "present", "routers": {"web": {"state": "A"}, "mail": {"state": "B"}}}',
            [("web", "A"), ("mail", "B")],
        ),
        (
            b'{"event": "state", "router": "mail", "old": "BACKUP", "new": "MASTER"}',
            [("mail", "MASTER")],
        ),
        (b'{"event": "present", "routers": {}}', []),
        (b'{"event": "present", "routers": []}', []),
        (b'{"event": "priority", "router": "web", "priority": 7}', []),
        (b'{"event": "sta', []),
        (b"[1]", []),
        (b"", []),
    ],
)
def test_states_are_read_from_an_event(line: bytes, states: list[tuple[str, str]]) -> None:
    assert parse_event(line) == states


@pytest.fixture
def director(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Director:
    """One whose program only sleeps, and whose sockets are in a directory of the test."""
    monkeypatch.setattr(laboratory, "enter", lambda _node, _command: ["sleep", "60"])
    made = Director("east", tmp_path / "pair.toml", tmp_path / "east.log")
    made._runtime = tmp_path
    return made


@asynccontextmanager
async def saying(path: Path, *parts: bytes) -> AsyncIterator[None]:
    """A program that says something to whoever asks it first, and ends."""
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen(1)

        async def say() -> None:
            asking, _ = await listener.accept()
            async with trio.SocketStream(asking) as stream:
                for part in parts:
                    await stream.send_all(part)
                    await trio.testing.wait_all_tasks_blocked(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            yield


PRESENT = b'{"event": "present", "routers": {"web": {"state": "BACKUP"}}}\n'
OTHER = b'{"event": "priority", "router": "web", "priority": 7}\n'
CHANGED = b'{"event": "state", "router": "web", "old": "BACKUP", "new": "MASTER"}\n'


@pytest.mark.parametrize(
    "parts",
    [
        [PRESENT, OTHER, CHANGED],
        [PRESENT + OTHER[:9], OTHER[9:] + CHANGED],
        [PRESENT + CHANGED[:20], CHANGED[20:60], CHANGED[60:] + OTHER[:9]],
    ],
)
def test_a_director_is_followed_however_its_lines_arrive(
    director: Director, tmp_path: Path, parts: list[bytes]
) -> None:
    heard: list[tuple[str, str]] = []

    async def follow() -> None:
        with trio.fail_after(10):
            async with saying(tmp_path / "events-1.sock", *parts):
                await director.follow(lambda router, state: heard.append((router, state)))

    trio.run(follow)
    assert heard == [("web", "BACKUP"), ("web", "MASTER")]


def test_who_does_not_listen_is_not_followed(director: Director, tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []

    def hear(router: str, state: str) -> None:
        heard.append((router, state))

    trio.run(director.follow, hear)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "events-1.sock"))
    trio.run(director.follow, hear)
    assert heard == []


def test_only_who_was_killed_is_killed_and_that_until_it_starts_again(director: Director) -> None:
    async def run() -> None:
        await director.start()
        killed = []
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
            director.signal(number)
            killed.append(director.killed)
        assert killed == [False, False, True]
        assert await director.wait_end(10)
        await director.start()
        assert not director.killed
        director.end()
        assert await director.wait_end(10)

    trio.run(run)


def test_a_processor_that_has_no_time_is_noticed() -> None:
    now, naps, ended = 50.0, iter([0.0, 0.003, 0.03, 0.0]), threading.Event()

    def sleep(seconds: float) -> None:
        nonlocal now
        assert not ended.is_set()
        late = next(naps, None)
        now += seconds + (late or 0.0)
        if late is None:
            ended.set()

    ((since, until),) = watch(ended, lambda: now, sleep)
    assert (since, until) == pytest.approx((50.006, 50.036))


def test_a_processor_that_never_has_time_is_not_watched_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standstill, "STANDSTILLS_MAX", 3)
    clock = itertools.count(50.0)
    noticed = watch(threading.Event(), lambda: next(clock), lambda _seconds: None)
    assert len(list(itertools.islice(noticed, 9))) == 3


def test_each_processor_is_watched_by_a_thread_of_its_own_until_the_input_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def noticing(ended: threading.Event) -> Iterator[tuple[float, float]]:
        (processor,) = os.sched_getaffinity(0)
        if ended.wait(10):
            yield 100.0 - processor, 200.0

    def refuse(*_: int) -> None:
        raise PermissionError

    result = tmp_path / "standstills.json"
    monkeypatch.setattr(standstill, "watch", noticing)
    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(sys, "argv", ["standstill", "--result", str(result)])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    standstill.main()
    assert capsys.readouterr().out == "ready\n"
    processors = os.sched_getaffinity(0)
    noticed = sorted([100.0 - processor, 200.0, processor] for processor in processors)
    assert json.loads(result.read_text(encoding="utf-8")) == noticed


def test_sentence_on_what_is_missing_names_the_switch() -> None:
    sentence = explain("Operation not permitted", ["user namespaces are disabled (x = 0)"])
    assert "because user namespaces are disabled (x = 0)" in sentence
    assert "Operation not permitted" in sentence
    assert "\n" not in sentence


def test_live_line_tells_silence_and_losses() -> None:
    tick: dict[str, object] = {
        "streams": 5,
        "idle": 4,
        "broken": 1,
        "short": 9,
        "short_lost": 1,
        "answers": 100,
        "last_answer_at": 10.0,
    }
    line = describe_tick(tick, 11.5)
    assert "5 streams" in line
    assert "2 lost" in line
    assert "no answer for 1.5 s" in line
    assert "no answer" not in describe_tick(tick, 10.1)
