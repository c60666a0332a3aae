"""What a running node makes of a changed pair file: services, servers, checks, and the operator."""

import errno
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from lvsha.administration import Administration
from lvsha.build import build_director
from lvsha.config import Pair, load_pair
from lvsha.config_health import Check
from lvsha.datapath.service_policy import TellRule, TellWhen
from lvsha.datapath.services import RealServer
from lvsha.errors import AdministrationError, ConfigError, HostError
from lvsha.health.opinions import Finding
from lvsha.health.target import Target
from lvsha.ipvsadm.exchange import Answer
from lvsha.node_health import NodeHealth
from lvsha.node_reload import NodeReload, Outcome
from lvsha.reload_planner import Proposal, make_proposal
from lvsha.service_changes import ServiceChanges
from lvsha.sync.opinions import NotUp
from lvsha.vigil import Vigil
from tests.probers import BAD, GOOD, ScriptedProber

VIRTUAL, OTHER = "192.0.2.10:80", "192.0.2.10:81"
A, B, C, SORRY = "10.1.0.11:80", "10.1.0.12:80", "10.1.0.13:80", "10.1.0.99:80"
CHECKS = 'checks = [{ type = "tcp", interval = 1, rise = 1, fall = 2, jitter = 0 }]\n'
ROUND = 2.5
"""Seconds in which every check was tried twice, and so every opinion formed."""
NODES = '[nodes.east]\ninterfaces = { outside = "eth0" }\n'


def a_service(keys: str = "", /, *, name: str = "web", port: int = 80, **weights: int | str) -> str:
    """A service of the pair file; servers by letter, with a weight or with more."""
    ends = {"a": 11, "b": 12, "c": 13}
    servers = ", ".join(
        f'{{ address = "10.1.0.{ends[letter]}", weight = {weight} }}'
        for letter, weight in weights.items()
    )
    return f"""
[[services]]
name = "{name}"
address = "192.0.2.10"
port = {port}
scheduler = "rr"
servers = [{servers}]
{keys}
"""


class Manager:
    """A service manager that notes what it is told."""

    watchdog: float | None = None

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []

    def tell(self, **assignments: str) -> None:
        self.told.append(assignments)


class Stage:
    """A director that follows a file, with an operator."""

    def __init__(self, file: Path) -> None:
        self.file = file
        pair = load_pair(file)
        self.director = build_director(pair)
        self.prober = ScriptedProber()
        self.changes = 0
        self.fault: HostError | None = None
        self.planned: trio.Event | None = None
        self.followed: list[Pair] = []
        self.manager = Manager()
        self.vigil = Vigil(trio.lowlevel.checkpoint, self.manager, 0.3, lambda: None)
        self.shared: list[tuple[int, list[NotUp]]] = []
        self.health = NodeHealth(pair, "east", self.director, self.prober, self._changed)
        self.health.share = lambda _, checked, not_up: self.shared.append((checked, sorted(not_up)))
        self.reloading = NodeReload(
            pair,
            file,
            self.director,
            self.health,
            self.vigil,
            lambda pair, _: self.followed.append(pair),
            self._changed,
            self._propose,
        )
        self._administration = Administration(
            self.director, trio.current_time, self.health.services_changed
        )

    async def _propose(self, running: bytes, file: Path) -> Proposal:
        """Plan in this process: under a virtual clock no time passes for another."""
        await trio.lowlevel.checkpoint()
        if self.planned is not None:
            await self.planned.wait()
        if self.fault is not None:
            raise self.fault
        return make_proposal(running, file)

    def _changed(self) -> None:
        self.changes += 1

    async def reload(self, *services: str) -> Outcome:
        self.file.write_text("\n".join([*services, NODES]))
        return await self.reloading.reload()

    def ipvsadm(self, *words: str) -> None:
        answer = self._administration.ipvsadm({"words": list(words)})
        assert Answer.model_validate(answer).status == 0, answer

    def edit(self, command: str, server: str, *words: str) -> None:
        self.ipvsadm(command, "-t", VIRTUAL, "-r", server, *words)

    def services(self) -> dict[str, dict[str, int]]:
        return {
            service.name: {str(server): server.weight for server in service.servers}
            for service in self.director.services
        }

    def leaving(self) -> dict[str, set[str]]:
        """The servers that are listed no more and serve connections, by service."""
        return {
            service.name: {str(server) for server in servers}
            for service, servers in self.director.services.leaving.by_service().items()
        }

    def weights(self) -> dict[str, int]:
        return self.services()["web"]

    def server(self, end: str) -> RealServer:
        return next(
            server
            for service in self.director.services
            for server in service.servers
            if str(server) == end
        )

    async def settle(self) -> None:
        await trio.sleep(ROUND)


Scenario = Callable[[Stage], Awaitable[None]]
Play = Callable[..., Stage]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Plays a scenario on a node that has started with some services."""

    def begin(scenario: Scenario, *services: str) -> Stage:
        structlog.configure(processors=[lambda *_: ""], cache_logger_on_first_use=False)
        structlog.reset_defaults()
        file = tmp_path / "pair.toml"
        file.write_text("\n".join([*services, NODES]))
        stage = Stage(file)

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                await stage.health.start(nursery)
                nursery.start_soon(stage.reloading.run)
                stage.vigil.ready()
                await stage.settle()
                await scenario(stage)
                nursery.cancel_scope.cancel()

        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
        return stage

    return begin


# Services and servers without checks


def test_what_the_file_has_anew_is_there_and_what_it_changes_is_changed(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        outcome = await stage.reload(
            a_service("persistence = 60", a=4, b=1, c=3), a_service(name="api", port=81, a=1)
        )
        assert outcome.taken == ("services.api", "services.web")
        assert stage.changes == 1
        assert stage.services() == {"web": {A: 4, B: 1, C: 3}, "api": {"10.1.0.11:81": 1}}
        (web, _) = stage.director.services
        assert web.options.persistence == 60
        assert stage.followed == [load_pair(stage.file)]
        assert str(await stage.reloading.reload()) == "the pair file has not changed"

    play(scenario, a_service(a=1, b=1))


def test_a_removed_server_serves_its_connections_and_goes_with_the_last(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        leaving = stage.server(B)
        leaving.active, leaving.inactive = 1, 1  # as if there were connections
        await stage.reload(a_service(a=1))
        assert stage.weights() == {A: 1}
        assert stage.leaving() == {"web": {B}}
        await stage.settle()
        leaving.active = 0
        await stage.settle()
        assert stage.leaving() == {"web": {B}}
        before, leaving.inactive = stage.changes, 0
        await stage.settle()
        assert not leaving.serving
        assert stage.leaving() == {}
        assert stage.changes == before + 1

    play(scenario, a_service(a=1, b=1))


def test_a_removed_service_is_gone_and_its_servers_leave(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        leaving, idle = stage.server("10.1.0.12:81"), stage.server("10.1.0.11:81")
        leaving.active = 1
        # Another one has its name now.
        await stage.reload(a_service(a=1), a_service(name="api", port=82, a=1))
        assert stage.services() == {"web": {A: 1}, "api": {"10.1.0.11:82": 1}}
        assert stage.leaving() == {"api": {"10.1.0.12:81"}}
        assert (leaving.serving, idle.serving) == (True, False)
        leaving.active = 0
        await stage.settle()
        assert stage.leaving() == {}

    play(scenario, a_service(a=1), a_service(name="api", port=81, a=1, b=1))


def test_what_was_leaving_comes_back_with_the_file(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.server(A), stage.server(B)
        first.active = second.active = 1
        await stage.reload()
        await stage.settle()
        assert stage.services() == {}
        assert stage.leaving() == {"web": {A, B}}
        await stage.reload(a_service(a=2))
        assert stage.services() == {"web": {A: 2}}
        assert stage.leaving() == {"web": {B}}
        assert stage.server(A) is first
        await stage.reload(a_service(a=2, b=3))
        assert stage.services() == {"web": {A: 2, B: 3}}
        assert stage.leaving() == {}
        second.active = first.active = 0
        await stage.settle()
        assert stage.services() == {"web": {A: 2, B: 3}}

    play(scenario, a_service(a=2, b=3))


def test_an_operator_who_does_not_want_to_wait_removes_what_leaves(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        leaving = stage.server(B)
        leaving.active = 1
        await stage.reload(a_service(a=1))
        stage.edit("-d", B)
        assert stage.leaving() == {}
        assert not leaving.serving
        # Or wants it back.
        stage.server(A).active = 1
        await stage.reload(a_service(c=1))
        stage.edit("-a", A, "-m", "-w", "5")
        assert stage.weights() == {A: 5, C: 1}
        await stage.settle()
        assert stage.weights() == {A: 5, C: 1}
        assert stage.server(A).active == 1

    play(scenario, a_service(a=1, b=1))


def test_the_operators_changes_stay_unless_the_file_says_something_else_now(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.edit("-e", A, "-m", "-w", "9")
        stage.edit("-d", B)
        stage.edit("-a", "10.1.0.50:80", "-m")
        await stage.reload(a_service(a="1, upper = 7", b=1, c=1))
        assert stage.weights() == {A: 9, C: 1, "10.1.0.50:80": 1}
        assert stage.server(A).upper == 7
        await stage.reload(a_service(a=2, b=2, c=1))
        assert stage.weights() == {A: 2, B: 2, C: 1, "10.1.0.50:80": 1}

    play(scenario, a_service(a=1, b=1))


def test_a_service_that_the_operator_has_added_becomes_the_files(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.ipvsadm("-A", "-t", OTHER, "-s", "wlc")
        stage.ipvsadm("-a", "-t", OTHER, "-r", "10.1.0.11:81", "-m", "-w", "4")
        await stage.reload(a_service(a=1), a_service(name="api", port=81, a=1))
        assert stage.services()["api"] == {"10.1.0.11:81": 1}

    play(scenario, a_service(a=1))


@pytest.mark.parametrize("keys", ["", CHECKS], ids=["unchecked", "checked"])
def test_a_service_that_the_operator_has_removed_comes_back_when_the_file_changes_it(
    play: Play, keys: str
) -> None:
    async def scenario(stage: Stage) -> None:
        stage.ipvsadm("-D", "-t", VIRTUAL)
        await stage.reload(a_service(keys, a=1), a_service(name="api", port=81, a=1))
        assert stage.services() == {"api": {"10.1.0.11:81": 1}}
        await stage.reload(a_service(keys, a=1, b=2), a_service(name="api", port=81, a=1))
        await stage.settle()
        assert stage.services()["web"] == {A: 1, B: 2}

    play(scenario, a_service(keys, a=1))


# Settings


def test_settings_and_timeouts_change_but_for_what_the_operator_has_set(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.reload("[ipvs]\nsloppy_tcp = true\n[timeouts]\nudp = 17\n", a_service(a=1))
        settings = stage.director.settings
        assert (settings.sloppy_tcp, settings.drop_entry) == (True, 0)
        assert stage.director.timeouts[2] == 17
        stage.director.configure(settings.changed({"drop_entry": 1}))
        await stage.reload("[timeouts]\nudp = 17\n", a_service(a=1))
        settings = stage.director.settings
        assert (settings.sloppy_tcp, settings.drop_entry) == (False, 1)

    play(scenario, a_service(a=1))


# Files that are wrong


def test_a_wrong_file_changes_nothing_and_is_explained(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for wrong, why in (
            ("[[services", "TOML"),
            (a_service(a=1, port=99999), "services.*port"),
            (a_service(a=1) + 'engine = "sip"\n', "engine"),
        ):
            with pytest.raises(ConfigError, match=why):
                await stage.reload(a_service(name="api", port=81, a=1), wrong)
            assert stage.services() == {"web": {A: 1, B: 1}}
            said = await stage.reloading.command({})
            assert isinstance(said, dict)
            assert "pair.toml" in said["refused"]
            stage.reloading.ask()
            await trio.sleep(0.01)
        assert stage.followed == []
        assert stage.manager.told[-2]["RELOADING"] == "1"
        assert stage.manager.told[-1]["STATUS"] == "running; the pair file is wrong: see the log"

    play(scenario, a_service(a=1, b=1))


def test_a_file_that_could_not_be_looked_at_ends_nothing(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.fault = HostError("no process left")
        stage.reloading.ask()
        await trio.sleep(0.01)
        with pytest.raises(HostError, match="no process"):
            await stage.reloading.command({})
        assert stage.reloading.counters.snapshot() == {"failed": 2}
        assert stage.manager.told[-1]["STATUS"] == "running; not reloaded: see the log"
        stage.fault = None
        await stage.reload(a_service(a=2))
        assert stage.weights() == {A: 2}

    play(scenario, a_service(a=1))


def test_a_node_that_is_starting_says_so(tmp_path: Path) -> None:
    async def ask() -> None:
        file = tmp_path / "pair.toml"
        file.write_text(NODES)
        with pytest.raises(HostError, match="try again"):
            await Stage(file).reloading.command({})

    trio.run(ask)


# Checks


def test_opinions_live_on_where_a_server_is_checked_as_before(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 0, B: 1}
        await stage.reload(a_service(CHECKS, a=3, b=4, c=5))
        # At once: who was up has its new weight, who is new waits for its first check.
        assert stage.weights() == {A: 0, B: 4, C: 0}
        await stage.settle()
        assert stage.weights() == {A: 0, B: 4, C: 5}
        stage.prober.findings.clear()
        await stage.settle()
        assert stage.weights() == {A: 3, B: 4, C: 5}

    play(scenario, a_service(CHECKS, a=1, b=1))


def test_a_server_in_use_is_not_taken_out_because_its_checks_are_others(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.12"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 1, B: 0}
        await stage.reload(a_service(CHECKS.replace("fall = 2", "fall = 3"), a=1, b=1))
        assert stage.weights() == {A: 1, B: 0}
        stage.prober.findings["10.1.0.11"] = BAD
        await trio.sleep(1.5)
        assert stage.weights() == {A: 1, B: 0}
        await trio.sleep(3)
        assert stage.weights() == {A: 0, B: 0}

    play(scenario, a_service(CHECKS, a=1, b=1))


def test_checks_come_to_a_service_and_go_from_it(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.12"] = BAD
        stage.edit("-e", A, "-m", "-w", "6")
        await stage.reload(a_service(CHECKS, a=1, b=1))
        assert stage.weights() == {A: 6, B: 1}
        await stage.settle()
        await stage.settle()
        assert stage.weights() == {A: 6, B: 0}
        # Its own weight is that of the operator still.
        await stage.reload(a_service(a=1, b=1))
        assert stage.weights() == {A: 6, B: 1}
        tried = len(stage.prober.tried)
        await stage.settle()
        assert len(stage.prober.tried) == tried

    play(scenario, a_service(a=1, b=1))


def test_what_a_check_has_removed_stays_away_until_it_is_up(play: Play) -> None:
    removes = CHECKS + 'health = { on_failure = "remove" }\n'

    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.12"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 1}
        removals = stage.director.services.removals
        await stage.reload(a_service(removes, a=2, b=2))
        assert stage.weights() == {A: 2}
        assert stage.director.services.removals == removals
        stage.prober.findings.clear()
        await stage.settle()
        assert stage.weights() == {A: 2, B: 2}

    play(scenario, a_service(removes, a=1, b=1))


def test_the_operators_word_about_a_checked_server_lives_on(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.edit("-e", A, "-m", "-w", "8")
        stage.edit("-d", B)
        await stage.reload(a_service(CHECKS, a=1, b=1, c=1))
        await stage.settle()
        assert stage.weights() == {A: 8, C: 1}
        await stage.reload(a_service(CHECKS, a=2, b=2, c=1))
        await stage.settle()
        assert stage.weights() == {A: 2, B: 2, C: 1}

    play(scenario, a_service(CHECKS, a=1, b=1))


def test_the_sorry_server_goes_on_standing_in(play: Play) -> None:
    sorry = CHECKS + 'sorry_server = { address = "10.1.0.99" }\n'

    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 0, SORRY: 1}
        await stage.reload(a_service(sorry, a=5))
        assert stage.weights() == {A: 0, SORRY: 1}
        # A new server that nothing is known of yet does not end that.
        await stage.reload(a_service(sorry, a=5, b=1))
        assert stage.weights() == {A: 0, B: 0, SORRY: 1}
        stage.prober.findings["10.1.0.12"] = BAD
        await stage.settle()
        stage.server(SORRY).active = 1
        await stage.reload(a_service(CHECKS, a=5))
        assert stage.weights() == {A: 0}
        assert stage.leaving() == {"web": {SORRY}}

    play(scenario, a_service(sorry, a=1))


def test_a_server_that_becomes_the_sorry_server_serves_its_connections(play: Play) -> None:
    sorry = CHECKS + 'sorry_server = { address = "10.1.0.12" }\n'

    async def scenario(stage: Stage) -> None:
        server = stage.server(B)
        server.active = 1
        await stage.reload(a_service(sorry, a=1))
        await stage.settle()
        assert stage.weights() == {A: 1}
        assert stage.leaving() == {"web": {B}}
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 0, B: 1}
        assert stage.server(B) is server

    play(scenario, a_service(CHECKS, a=1, b=1))


def test_the_quorum_is_said_again_only_when_it_changes(play: Play) -> None:
    commands = CHECKS + (
        'health = { quorum = 2, quorum_up = ["/bin/up"], quorum_down = ["/bin/down"] }\n'
    )

    async def scenario(stage: Stage) -> None:
        assert [words[0] for _, words, _ in stage.prober.commands] == ["/bin/up"]
        await stage.reload(a_service(commands, a=2, b=1))
        await stage.settle()
        assert len(stage.prober.commands) == 1
        await stage.reload(a_service(commands, a=1))
        await stage.settle()
        assert [words[0] for _, words, _ in stage.prober.commands] == ["/bin/up", "/bin/down"]
        # A service that comes anew has said nothing yet.
        await stage.reload()
        await stage.reload(a_service(commands, a=1))
        await stage.settle()
        assert [words[0] for _, words, _ in stage.prober.commands][2:] == ["/bin/down"]

    play(scenario, a_service(commands, a=1, b=1))


@pytest.mark.parametrize("checks", [CHECKS, CHECKS.replace("fall = 2", "fall = 3")])
def test_a_weight_that_grew_has_grown_when_the_file_says_so(play: Play, checks: str) -> None:
    async def scenario(stage: Stage) -> None:
        for finding in (BAD, GOOD):
            stage.prober.findings["10.1.0.11"] = finding
            await stage.settle()
        assert 1 <= stage.weights()[A] < 50
        await stage.reload(a_service(checks, a=100))
        assert stage.weights() == {A: 100}
        await trio.sleep(15)
        assert stage.weights() == {A: 100}

    play(scenario, a_service(CHECKS + "health = { slow_start = 20 }\n", a=100))


def test_what_a_probe_found_for_the_keeper_before_is_passed_over(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        begun, go_on = trio.Event(), trio.Event()

        async def probe(check: Check, target: Target) -> Finding:
            if begun.is_set():
                return GOOD
            begun.set()
            await go_on.wait()
            return BAD

        monkeypatch.setattr(stage.prober, "probe", probe)
        await begun.wait()
        assert stage.weights() == {A: 1}
        # The probe is over, and its task has not had its turn yet.
        go_on.set()
        (old,) = load_pair(stage.file).services
        stage.health.release(old)
        stage.health.follow(old, old)
        await trio.sleep(0.01)
        assert stage.weights() == {A: 1}

    play(scenario, a_service(CHECKS.replace("fall = 2", "fall = 1"), a=1))


def test_every_server_is_checked_once_after_reloads(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        for weight in range(2, 6):
            await stage.reload(a_service(CHECKS, a=weight, b=1), a_service(CHECKS, name="api",
                               port=81, a=weight))  # fmt: skip
            await trio.sleep(0.1)
        await stage.settle()
        before = len(stage.prober.tried)
        await trio.sleep(10)
        assert abs(len(stage.prober.tried) - before - 30) <= 3

    play(scenario, a_service(CHECKS, a=1, b=1))


# What was found by looking for it


def sharing(name: str, port: int) -> str:
    """A checked service with the same server as others of its kind."""
    server = '{ address = "10.1.0.11", port = 8080 }'
    return f'''
[[services]]
name = "{name}"
address = "192.0.2.10"
port = {port}
servers = [{server}]
{CHECKS}'''


def test_services_swap_their_names(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.reload(sharing("api", 80), sharing("web", 81))
        await stage.reload(sharing("api", 80), sharing("mail", 81))
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        await stage.settle()
        server = "10.1.0.11:8080"
        assert stage.services() == {"api": {server: 0}, "mail": {server: 0}}
        checked, not_up = stage.shared[-1]
        assert (checked, {name for name, *_ in not_up}) == (2, {"api", "mail"})

    play(scenario, sharing("web", 80), sharing("api", 81))


def test_round_robin_lives_on_when_several_servers_go_at_once(play: Play) -> None:
    removes = CHECKS + 'health = { on_failure = "remove" }\n'

    async def scenario(stage: Stage) -> None:
        (service,) = stage.director.services
        assert service.scheduler is not None
        while str(service.scheduler.schedule(b"", 0.0)) != C:
            pass
        stage.prober.findings |= {"10.1.0.12": BAD, "10.1.0.13": BAD}
        await stage.settle()
        await stage.reload(a_service(removes, a=1, b=1, c=1))
        assert stage.weights() == {A: 1}
        assert str(service.scheduler.schedule(b"", 0.0)) == A

    play(scenario, a_service(CHECKS, a=1, b=1, c=1))


def test_a_stop_waits_for_what_was_begun_and_begins_nothing_more(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.planned = trio.Event()
        stage.file.write_text("\n".join([a_service(a=2), NODES]))
        async with trio.open_nursery() as nursery:

            async def refused() -> None:
                with pytest.raises(HostError, match="stopping"):
                    await stage.reloading.reload()

            nursery.start_soon(refused)
            await trio.testing.wait_all_tasks_blocked()
            told = len(stage.manager.told)
            await stage.reloading.close()
        assert stage.weights() == {A: 1}
        with pytest.raises(HostError, match="stopping"):
            await stage.reloading.reload()
        # Nothing is said after STOPPING, least of all READY.
        assert stage.manager.told[told:] == []

    play(scenario, a_service(a=1))


def test_servers_without_checks_have_their_weight_when_no_other_has_any(play: Play) -> None:
    checked = '1, checks = [{ type = "tcp", interval = 1, rise = 1, fall = 1, jitter = 0 }]'
    keys = 'health = { quorum = 2 }\nsorry_server = { address = "10.1.0.99" }\n'

    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 0, B: 0, SORRY: 1}
        await stage.reload(a_service(a=1, b=1))
        assert stage.weights() == {A: 1, B: 1}

    play(scenario, a_service(keys, a=checked, b=1))


def test_a_server_drained_by_hand_stays_so_when_checks_go(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.edit("-e", A, "-m", "-w", "0")
        await stage.reload(a_service(a=1, b=1))
        assert stage.weights() == {A: 0, B: 1}

    play(scenario, a_service(CHECKS, a=1, b=1))


def test_a_server_removed_by_hand_stays_away_when_another_gets_checks(play: Play) -> None:
    checked = '1, checks = [{ type = "tcp", interval = 1, jitter = 0 }]'

    async def scenario(stage: Stage) -> None:
        stage.edit("-d", B)
        await stage.reload(a_service(a=checked, b=1))
        await stage.settle()
        assert stage.weights() == {A: 1}

    play(scenario, a_service(a=1, b=1))


@pytest.mark.parametrize("after", ["", CHECKS], ids=["unchecked", "checked"])
def test_a_server_removed_by_hand_stays_away_whatever_its_checks(play: Play, after: str) -> None:
    async def scenario(stage: Stage) -> None:
        stage.edit("-d", B)
        await stage.reload(a_service(after + "persistence = 5\n", a=1, b=1))
        await stage.settle()
        assert stage.weights() == {A: 1}

    play(scenario, a_service(CHECKS, a=1, b=1))


def test_what_checks_have_removed_is_back_when_they_go(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.12"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 1}
        await stage.reload(a_service(a=1, b=3))
        assert stage.weights() == {A: 1, B: 3}

    play(scenario, a_service(CHECKS + 'health = { on_failure = "remove" }\n', a=1, b=1))


def test_a_server_in_use_that_gets_checks_is_not_taken_out(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.reload(a_service(CHECKS, a=1, b=1))
        assert stage.weights() == {A: 1, B: 1}

    play(scenario, a_service(CHECKS, a="1, checks = []", b=1))


@pytest.mark.parametrize(("after", "first"), [(CHECKS, 0), ("", 1)], ids=["checked", "unchecked"])
def test_a_sorry_server_that_stands_in_becomes_one_of_the_servers(
    play: Play, after: str, first: int
) -> None:
    sorry = CHECKS + 'sorry_server = { address = "10.1.0.12" }\n'

    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        server = stage.server(B)
        server.active = 1
        await stage.reload(a_service(after, a=1, b=5))
        await stage.settle()
        assert stage.weights() == {A: first, B: 5}
        assert stage.server(B) is server

    play(scenario, a_service(sorry, a=1))


def test_what_is_known_of_a_server_stays_known_when_its_checks_are_others(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = replace(GOOD, weight=3)
        await stage.settle()
        assert stage.weights() == {A: 3}
        await stage.reload(a_service(CHECKS.replace("fall = 2", "fall = 3"), a=5))
        assert stage.weights() == {A: 3}
        (service,) = stage.director.services
        ((_, health),) = stage.health.of_servers(service)
        since = health["since_seconds"]
        assert isinstance(since, float)
        assert since > ROUND

    play(scenario, a_service(CHECKS, a=5))


def test_a_server_that_is_down_waits_for_its_first_other_check(play: Play) -> None:
    keys = CHECKS + 'health = { unchecked = "up" }\n'

    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        await stage.reload(a_service(keys.replace("fall = 2", "fall = 3"), a=1, b=1))
        for _ in range(20):
            assert stage.weights() == {A: 0, B: 1}
            await trio.sleep(0.1)

    play(scenario, a_service(keys, a=1, b=1))


def test_no_quorum_is_lost_before_new_servers_were_checked(play: Play) -> None:
    def keys(quorum: int) -> str:
        commands = 'quorum_up = ["/bin/up"], quorum_down = ["/bin/down"]'
        sorry = 'sorry_server = { address = "10.1.0.99" }'
        return f"{CHECKS}health = {{ quorum = {quorum}, {commands} }}\n{sorry}\n"

    async def scenario(stage: Stage) -> None:
        stage.prober.seconds = 0.5
        await stage.reload(a_service(keys(3), a=1, b=1, c=1))
        assert stage.weights() == {A: 1, B: 1, C: 0}
        await stage.settle()
        assert stage.weights() == {A: 1, B: 1, C: 1}
        assert [words[0] for _, words, _ in stage.prober.commands] == ["/bin/up"]
        stage.prober.findings["10.1.0.13"] = BAD
        await stage.settle()
        assert stage.weights()[SORRY] == 1

    play(scenario, a_service(keys(2), a=1, b=1))


def test_a_weight_goes_on_growing_when_checks_are_others(play: Play) -> None:
    slow = CHECKS + "health = { slow_start = 100 }\n"

    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        stage.prober.findings.clear()
        await trio.sleep(20)
        assert 10 < stage.weights()[A] < 30
        await stage.reload(a_service(slow.replace("fall = 2", "fall = 3"), a=100, b=100))
        assert 10 < stage.weights()[A] < 30
        stage.prober.findings["10.1.0.12"] = BAD
        await trio.sleep(5)
        # One that was down when its checks became others comes back slowly, too.
        await stage.reload(a_service(slow, a=100, b=100))
        stage.prober.findings.clear()
        await stage.settle()
        assert 1 <= stage.weights()[B] < 10

    play(scenario, a_service(slow, a=100, b=100))


def test_a_sorry_server_that_stands_in_is_changed(play: Play) -> None:
    def keys(method: str, upper: int) -> str:
        options = f'address = "10.1.0.99", method = "{method}", upper = {upper}'
        return f"{CHECKS}sorry_server = {{ {options} }}\n"

    async def scenario(stage: Stage) -> None:
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        await stage.reload(a_service(keys("dr", 5), a=1))
        sorry = stage.server(SORRY)
        assert (sorry.method.name, sorry.upper, sorry.weight) == ("DIRECT_ROUTE", 5, 1)

    play(scenario, a_service(keys("nat", 9), a=1))


def test_each_option_is_kept_that_the_file_does_not_change(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.edit("-e", A, "-m", "-w", "1", "-x", "7")
        stage.ipvsadm("-E", "-t", VIRTUAL, "-s", "wlc")
        stage.ipvsadm("--set", "1000", "0", "0")
        await stage.reload(
            "[timeouts]\nudp = 17\n", a_service(CHECKS + "persistence = 50\n", a=1, b=1)
        )
        (service,) = stage.director.services
        assert (service.options.scheduler, service.options.persistence) == ("wlc", 50)
        assert stage.server(A).upper == 7
        assert stage.director.timeouts[0] == 1000
        assert stage.director.timeouts[2] == 17

    play(scenario, a_service(a=1, b=1))


def test_a_new_service_is_told_of_as_the_operators_daemon_asks(play: Play) -> None:
    rule = TellRule(TellWhen.PACKETS, packets=9)

    async def scenario(stage: Stage) -> None:
        stage.director.services.tell_unasked(rule)
        await stage.reload(a_service(a=1), a_service(name="api", port=81, a=1))
        assert [service.policy.tell for service in stage.director.services] == [rule, rule]

    play(scenario, a_service(a=1))


def test_a_service_that_the_operator_makes_anew_is_the_operators(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.reload(a_service(name="api", port=81, a=1))
        stage.ipvsadm("-A", "-t", VIRTUAL, "-s", "rr")
        await stage.settle()
        assert len(stage.services()) == 2

    play(scenario, a_service(a=1), a_service(name="api", port=81, a=1))


def test_what_was_not_possible_is_tried_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AdministrationError(errno.EINVAL, "no")

    async def scenario(stage: Stage) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(ServiceChanges, "carry_out", refuse)
            outcome = await stage.reload(a_service(a=1, b=2))
        assert outcome.troubles == ("services.web: no",)
        assert stage.weights() == {A: 1, B: 1}
        outcome = await stage.reload(a_service(a=1, b=2))
        assert (outcome.taken, outcome.troubles) == (("services.web",), ())
        assert stage.weights() == {A: 1, B: 2}

    play(scenario, a_service(a=1, b=1))


# However one gets there


SEEDS = 60
STEPS = 6
SETTLED = 20.0
"""Seconds in which checks, slow starts, drains and departures are over."""
LETTERS = "abc"


class Drawn:
    """A service of a random pair file; few addresses, so that they meet again in the next file."""

    def __init__(self, dice: random.Random, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.letters = dice.sample(LETTERS, dice.randint(1, 3))
        self.weights = {letter: dice.choice((0, 1, 5)) for letter in LETTERS}
        self.exempt = {letter for letter in LETTERS if dice.random() < 0.25}
        self.keys: dict[str, object] = {
            "scheduler": dice.choice(("rr", "mh", "wlc")),
            "persistence": 0,
            "checked": dice.random() < 0.7,
            "fall": 2,
            "removes": dice.random() < 0.5,
            "unchecked_up": dice.random() < 0.3,
            "quorum": dice.choice((1, 1, 2, 6)),
            "slow_start": 0,
            "drain": dice.choice((0, 2)),
            "sorry": dice.choice((0, 1)),
        }

    def change(self, dice: random.Random) -> None:
        """Change something of it."""
        choices: dict[str, Sequence[object]] = {
            "scheduler": ("rr", "mh", "sh", "lblcr"), "persistence": (0, 30),
            "checked": (False, True), "fall": (1, 2), "removes": (False, True),
            "unchecked_up": (False, True), "quorum": (1, 2, 6), "slow_start": (0, 3),
            "drain": (0, 2), "sorry": (0, 1, 3),
        }  # fmt: skip
        key = dice.choice([*choices, "letters", "letters", "weights", "exempt"])
        letter = dice.choice(LETTERS)
        if key == "letters":
            self.letters = dice.sample(LETTERS, dice.randint(1, 3))
        elif key == "weights":
            self.weights[letter] = dice.choice((0, 1, 5))
        elif key == "exempt":
            self.exempt ^= {letter}
        else:
            self.keys[key] = dice.choice(choices[key])

    def text(self, server_port: int) -> str:
        port = server_port or self.port
        ends = {letter: f"10.1.0.{11 + LETTERS.index(letter)}" for letter in LETTERS}
        servers = ", ".join(
            f'{{ address = "{ends[each]}", port = {port}, weight = {self.weights[each]}'
            f"{', checks = []' if each in self.exempt else ''} }}"
            for each in self.letters
        )
        lines = [
            f'[[services]]\nname = "{self.name}"\naddress = "192.0.2.10"\nport = {self.port}',
            f'scheduler = "{self.keys["scheduler"]}"\npersistence = {self.keys["persistence"]}',
            f"servers = [{servers}]",
        ]
        if self.keys["checked"] and not set(self.letters) <= self.exempt:
            spare = [letter for letter in LETTERS if letter not in self.letters]
            sorry = spare[0] if spare and self.keys["sorry"] else ""
            health = [f"quorum = {self.keys['quorum']}"]
            health += ['on_failure = "remove"'] if self.keys["removes"] else []
            health += ['unchecked = "up"'] if self.keys["unchecked_up"] else []
            if self.keys["slow_start"] and any(self.weights[each] > 1 for each in self.letters):
                health.append("slow_start = 3")
            if self.keys["drain"] and (self.keys["removes"] or sorry):
                health.append("drain = 2")
            lines += [CHECKS.replace("fall = 2", f"fall = {self.keys['fall']}")]
            lines += [f"health = {{ {', '.join(health)} }}"]
            if sorry:
                place = f'address = "{ends[sorry]}", port = {port}'
                lines += [f"sorry_server = {{ {place}, weight = {self.keys['sorry']} }}"]
        return "\n".join(lines) + "\n"


def drawn_files(dice: random.Random) -> list[list[str]]:
    """Files each of which differs a little from the one before."""
    services = [Drawn(dice, "web", 80), Drawn(dice, "api", 81)]
    server_port, files = dice.choice((0, 8080)), []
    for _ in range(STEPS):
        files.append([service.text(server_port) for service in services])
        for _ in range(dice.randint(1, 2)):
            ports = {80, 81, 82} - {service.port for service in services}
            names = {"web", "api", "dns"} - {service.name for service in services}
            match dice.randrange(8):
                case 0 if ports:
                    services.append(Drawn(dice, min(names), min(ports)))
                case 1 if services:
                    services.remove(dice.choice(services))
                case 2 if services:
                    one, other = dice.choice(services), dice.choice(services)
                    one.name, other.name = other.name, one.name
                case _ if services:
                    dice.choice(services).change(dice)
    return files


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_node_that_was_reloaded_becomes_what_one_is_that_starts(seed: int, play: Play) -> None:
    dice = random.Random(seed)
    first, *files = drawn_files(dice)
    ends = [f"10.1.0.{11 + number}" for number in range(len(LETTERS))]
    bad = [dice.sample(ends, dice.randint(0, 2)) for _ in files]
    pauses = [dice.choice((0.0, 0.5, 1.2, 4.0)) for _ in files]

    def choose(stage: Stage) -> Iterator[RealServer]:
        """The servers of some new connections."""
        for service in stage.director.services:
            for client in range(dice.randint(0, 6)):
                key = bytes((4, 6, 10, 0, 0, client, 192, 0, 2, 10, 16, 0, 0, 80))
                assert service.scheduler is not None
                server = service.scheduler.schedule(key, trio.current_time())
                if server is not None:
                    assert server.available
                    assert server.weight > 0
                    yield server

    async def reload(stage: Stage) -> None:
        held: list[RealServer] = []
        for services, failing, pause in zip(files, bad, pauses, strict=True):
            stage.prober.findings = dict.fromkeys(failing, BAD)
            held += list(choose(stage))[:2]
            for server in held:
                server.active += 1  # as if they had connections
            serving = [server for server in held if server.serving]
            text = stage.file.read_text() + "".join(services)
            await stage.reload(*services)
            # Only what checks remove ends connections, and a sorry server that is done.
            gone = [server for server in serving if not server.serving]
            assert not gone or "remove" in text or "sorry" in text
            list(choose(stage))
            await trio.sleep(pause)
        for server in held:
            server.active = 0
        await trio.sleep(SETTLED)
        before = len(stage.prober.tried)
        await trio.sleep(20)
        checks = sum(1 for service in load_pair(stage.file).services for _ in service.all_checks())
        assert abs(len(stage.prober.tried) - before - 20 * checks) <= checks + 1

    async def only_start(stage: Stage) -> None:
        stage.prober.findings = dict.fromkeys(bad[-1], BAD)
        await trio.sleep(SETTLED)

    reloaded, started = play(reload, *first), play(only_start, *files[-1])
    assert reloaded.services() == started.services()
    assert reloaded.leaving() == {}
    # Both tell their peers the same.
    assert not started.shared or reloaded.shared[-1] == started.shared[-1]
