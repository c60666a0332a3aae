"""What a running node makes of a changed pair file: services, servers, checks, and the operator."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from lvsha.administration import Administration
from lvsha.build import build_director
from lvsha.config import Pair, load_pair
from lvsha.config_health import Check
from lvsha.datapath.services import RealServer
from lvsha.errors import ConfigError, HostError
from lvsha.health.opinions import Finding
from lvsha.health.target import Target
from lvsha.ipvsadm.exchange import Answer
from lvsha.node_health import NodeHealth
from lvsha.node_reload import NodeReload, Outcome
from lvsha.reload_planner import Proposal, make_proposal
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
        self.followed: list[Pair] = []
        self.manager = Manager()
        self.vigil = Vigil(trio.lowlevel.checkpoint, self.manager, 0.3, lambda: None)
        self.health = NodeHealth(pair, "east", self.director, self.prober, self._changed)
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
                nursery.start_soon(stage.reloading.retirement.run)
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
        assert stage.weights() == {A: 1, B: 0}
        (service,) = stage.director.services
        assert len(stage.reloading.may_be_away(service)) == 1
        await stage.settle()
        leaving.active = 0
        await stage.settle()
        assert stage.weights() == {A: 1, B: 0}
        assert stage.changes == 0
        leaving.inactive = 0
        await stage.settle()
        assert stage.weights() == {A: 1}
        assert stage.changes == 1
        assert not stage.reloading.may_be_away(service)

    play(scenario, a_service(a=1, b=1))


def test_a_removed_service_goes_with_its_last_server(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        leaving = stage.server("10.1.0.12:81")
        leaving.active = 1
        # Another one has its name now.
        await stage.reload(a_service(a=1), a_service(name="api", port=82, a=1))
        assert stage.services() == {
            "web": {A: 1},
            "TCP 192.0.2.10:81": {"10.1.0.11:81": 0, "10.1.0.12:81": 0},
            "api": {"10.1.0.11:82": 1},
        }
        await stage.settle()
        assert stage.services()["TCP 192.0.2.10:81"] == {"10.1.0.12:81": 0}
        is_leaving = stage.reloading.retirement.is_leaving
        names = [each.name for each in stage.director.services if is_leaving(each)]
        assert names == ["TCP 192.0.2.10:81"]
        leaving.active = 0
        await stage.settle()
        assert stage.services() == {"web": {A: 1}, "api": {"10.1.0.11:82": 1}}

    play(scenario, a_service(a=1), a_service(name="api", port=81, a=1, b=1))


def test_what_was_leaving_comes_back_with_the_file(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.server(B).active = stage.server(A).active = 1
        await stage.reload()
        await stage.settle()
        assert stage.services() == {f"TCP {VIRTUAL}": {A: 0, B: 0}}
        await stage.reload(a_service(a=2, b=3))
        (service,) = stage.director.services
        assert not stage.reloading.retirement.is_leaving(service)
        assert not stage.reloading.retirement.leaving(service)
        await stage.settle()
        stage.server(B).active = stage.server(A).active = 0
        await stage.settle()
        assert stage.services() == {"web": {A: 2, B: 3}}

    play(scenario, a_service(a=2, b=3))


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
        # One that leaves, and that the operator wants after all.
        await stage.reload(a_service(a=2, b=2))
        stage.edit("-e", C, "-m", "-w", "5")
        await stage.settle()
        assert stage.weights()[C] == 5

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
            await stage.reloading.at_signal()
        assert stage.followed == []
        assert stage.manager.told[-2]["RELOADING"] == "1"
        assert stage.manager.told[-1]["STATUS"] == "running; the pair file is wrong: see the log"

    play(scenario, a_service(a=1, b=1))


def test_a_file_that_could_not_be_looked_at_ends_nothing(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.fault = HostError("no process left")
        await stage.reloading.at_signal()
        with pytest.raises(HostError, match="no process"):
            await stage.reloading.command({})
        assert stage.reloading.counters.snapshot() == {"failed": 2}
        assert stage.manager.told[-1]["STATUS"] == "running; not reloaded"
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
        await stage.reload(a_service(a=1, b=1))
        assert stage.weights() == {A: 1, B: 1}
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
        assert stage.weights() == {A: 0, B: 0, SORRY: 0}
        stage.server(SORRY).active = 0
        await stage.settle()
        assert stage.weights() == {A: 0}

    play(scenario, a_service(sorry, a=1))


def test_a_server_that_becomes_the_sorry_server_serves_its_connections(play: Play) -> None:
    sorry = CHECKS + 'sorry_server = { address = "10.1.0.12" }\n'

    async def scenario(stage: Stage) -> None:
        stage.server(B).active = 1
        await stage.reload(a_service(sorry, a=1))
        await stage.settle()
        assert stage.weights() == {A: 1, B: 0}
        stage.health.services_changed()
        stage.server(B).active = 0
        await stage.settle()
        assert stage.weights() == {A: 1}
        stage.health.services_changed()
        stage.prober.findings["10.1.0.11"] = BAD
        await stage.settle()
        assert stage.weights() == {A: 0, B: 1}

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


# However one gets there


SEEDS = 60
STEPS = 4
SETTLED = 12.0
"""Seconds in which checks, slow starts, drains and departures are over."""


def drawn_file(dice: random.Random) -> list[str]:
    """Some services; few addresses, so that they meet again in the next file."""
    services = []
    names = ["web", "api", "dns", "mail"]
    dice.shuffle(names)
    for port in dice.sample((80, 81, 82), dice.randint(0, 3)):
        letters = dice.sample("abc", dice.randint(1, 3))
        weights = {letter: dice.choice((0, 1, 5)) for letter in letters}
        keys = dice.choice(("", "persistence = 30\n"))
        sorry = ""
        if dice.random() < 0.6:
            keys += CHECKS.replace("fall = 2", dice.choice(("fall = 2", "fall = 1")))
            health = dice.choice(
                ("", 'on_failure = "remove"', 'on_failure = "remove", drain = 1', "quorum = 3")
            )
            keys += f"health = {{ {health} }}\n"
            spare = [letter for letter in "abc" if letter not in letters]
            if spare and dice.random() < 0.5:
                sorry = f'sorry_server = {{ address = "10.1.0.{11 + "abc".index(spare[0])}" }}\n'
        services.append(a_service(keys + sorry, name=names.pop(), port=port, **weights))
    return services


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_node_that_was_reloaded_becomes_what_one_is_that_starts(seed: int, play: Play) -> None:
    dice = random.Random(seed)
    first, *files = [drawn_file(dice) for _ in range(STEPS)]
    bad = [dice.sample(("10.1.0.11", "10.1.0.12", "10.1.0.13"), dice.randint(0, 2)) for _ in files]
    pauses = [dice.choice((0.0, 0.5, 3.0)) for _ in files]

    async def reload(stage: Stage) -> None:
        for services, failing, pause in zip(files, bad, pauses, strict=True):
            stage.prober.findings = dict.fromkeys(failing, BAD)
            await stage.reload(*services)
            await trio.sleep(pause)
        await trio.sleep(SETTLED)

    async def only_start(stage: Stage) -> None:
        stage.prober.findings = dict.fromkeys(bad[-1], BAD)
        await trio.sleep(SETTLED)

    reloaded, started = play(reload, *first), play(only_start, *files[-1])
    assert reloaded.services() == started.services()
    is_leaving = reloaded.reloading.retirement.is_leaving
    assert not any(map(is_leaving, reloaded.director.services))
