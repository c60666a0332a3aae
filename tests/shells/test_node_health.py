"""What a node's director has from the checks, and what the operator has to say in it."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from lvsha.administration import Administration
from lvsha.build import build_director
from lvsha.config import Pair, parse_pair
from lvsha.health.judge import Judge
from lvsha.health.opinions import Finding, Opinion
from lvsha.health.peer_opinions import SETTLING, Disagreement, PeerOpinions
from lvsha.health.peer_opinions import Server as CheckedServer
from lvsha.ipvsadm.exchange import Answer
from lvsha.model import parse_address
from lvsha.node_health import EXCHANGE_INTERVAL, NodeHealth
from lvsha.service_status import service_status
from lvsha.sync.messages import Opinions, Origin, Role
from lvsha.sync.opinions import NotUp
from lvsha.turns import Turns
from tests.probers import BAD, GOOD, ScriptedProber

VIRTUAL = "192.0.2.10"
FIRST, SECOND, SORRY = "10.1.0.11", "10.1.0.12", "10.1.0.99"
NODES = """
[nodes.east]
interfaces = { outside = "eth0", inside = "eth1" }
"""
CHECKS = 'checks = [{ type = "tcp", interval = 1, rise = 1, fall = 2, jitter = 0 }]'
ROUND = 2.5
"""Seconds in which every check was tried twice, and so every opinion formed."""


def a_pair(keys: str = "", weights: tuple[int, int] = (5, 7)) -> Pair:
    return parse_pair(
        f"""
[[services]]
name = "web"
address = "{VIRTUAL}"
port = 80
scheduler = "rr"
servers = [
    {{ address = "{FIRST}", weight = {weights[0]} }},
    {{ address = "{SECOND}", weight = {weights[1]} }},
]
{CHECKS}
{keys}
{NODES}""",
        "pair.toml",
    )


class Stage:
    """A director with checks and with an operator."""

    def __init__(self, pair: Pair) -> None:
        self.prober = ScriptedProber()
        self.director = build_director(pair)
        self.changes = 0
        self.shared: list[tuple[int, int, list[tuple[str, bytes, int, int]]]] = []
        self.health = NodeHealth(pair, "east", self.director, self.prober, self._changed)
        self.health.share = lambda *told: self.shared.append((*told[:2], list(told[2])))
        self._administration = Administration(
            self.director, trio.current_time, self.health.services_changed
        )

    def _changed(self) -> None:
        self.changes += 1

    def weights(self) -> dict[str, int]:
        services = list(self.director.services)
        return {str(s).split(":")[0]: s.weight for each in services for s in each.servers}

    def ipvsadm(self, *words: str) -> None:
        answer = self._administration.ipvsadm({"words": list(words)})
        assert Answer.model_validate(answer).status == 0, answer

    def edit(self, command: str, server: str, *words: str) -> None:
        self.ipvsadm(command, "-t", f"{VIRTUAL}:80", "-r", f"{server}:80", *words)

    def status(self) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        (service,) = self.director.services
        found = {end.split(":")[0]: health for end, health in self.health.of_servers(service)}
        status = self.health.status(service)
        assert status is not None
        return status, found


Scenario = Callable[[Stage], Awaitable[None]]


def play(scenario: Scenario, pair: Pair | None = None, prepare: Sequence[str] = ()) -> Stage:
    """Run a scenario once the checks have started; some servers are bad from the beginning."""
    structlog.configure(processors=[lambda *_: ""], cache_logger_on_first_use=False)
    structlog.reset_defaults()
    stage = Stage(pair or a_pair())
    for address in prepare:
        stage.prober.findings[address] = BAD

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await stage.health.start(nursery)
            await scenario(stage)
            nursery.cancel_scope.cancel()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    return stage


def test_servers_take_connections_after_their_first_check_and_none_when_it_fails() -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.weights() == {FIRST: 0, SECOND: 0}
        assert stage.status()[1][FIRST]["opinion"] == "unknown"
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 5, SECOND: 7}
        assert stage.status()[1][FIRST]["opinion"] == "up"
        stage.prober.findings[FIRST] = BAD
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 0, SECOND: 7}
        assert stage.status()[1][FIRST]["opinion"] == "down"
        stage.prober.findings.clear()
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 5, SECOND: 7}
        assert stage.status()[1][FIRST]["opinion"] == "up"

    stage = play(scenario)
    assert stage.changes == 0


def told(number: int, *not_up: NotUp, part: int = 0, parts: int = 1) -> Opinions:
    return Opinions(Origin(1, "west", 1, Role.LEAD, 1, 0), number, part, parts, 2, not_up)


def test_the_nodes_tell_each_other_what_they_find_and_people_where_they_disagree() -> None:
    down = ("web", parse_address(FIRST), 80, 1)

    async def scenario(stage: Stage) -> None:
        stage.prober.findings[FIRST] = BAD
        await trio.sleep(max(ROUND, EXCHANGE_INTERVAL) + 0.1)
        number, checked, not_up = stage.shared[-1]
        assert (checked, not_up) == (2, [down])
        assert stage.status()[1][SECOND]["peers"] == {}
        for turn in range(int(SETTLING) + 3):
            stage.health.hear(told(number + turn))
            await trio.sleep(EXCHANGE_INTERVAL)
        found = stage.status()[1]
        assert (found[FIRST]["opinion"], found[FIRST]["peers"]) == ("down", {"west": "up"})
        assert stage.health.counted()["disagreements"] == 1
        stage.health.hear(told(1000, down, ("web", parse_address(SECOND), 80, 0)))
        found = stage.status()[1]
        assert (found[FIRST]["peers"], found[SECOND]["peers"]) == (
            {"west": "down"},
            {"west": "unknown"},
        )
        stage.health.hear(told(1001, part=1, parts=2))
        assert stage.status()[1] == found
        await trio.sleep(2 * EXCHANGE_INTERVAL)
        assert stage.health.counted()["disagreements"] == 1
        numbers = [shared[0] for shared in stage.shared]
        assert numbers == sorted(set(numbers))

    play(scenario)


def test_a_list_for_the_peers_names_those_that_are_not_up_now_in_the_order_of_the_file() -> None:
    first, second = (("web", parse_address(address), 80) for address in (FIRST, SECOND))

    async def scenario(stage: Stage) -> None:
        shared = []
        for bad in ([SECOND], [FIRST, SECOND], [FIRST], []):
            stage.prober.findings = dict.fromkeys(bad, BAD)
            await trio.sleep(ROUND + EXCHANGE_INTERVAL)
            shared.append(stage.shared[-1][1:])
        assert shared == [
            (2, [(*second, 1)]),
            (2, [(*first, 1), (*second, 1)]),
            (2, [(*first, 1)]),
            (2, []),
        ]

    play(scenario)


@pytest.mark.parametrize(("unchecked", "named"), [("down", [FIRST, SECOND]), ("up", [])])
def test_the_first_list_names_those_that_nobody_knows_yet(unchecked: str, named: list[str]) -> None:
    async def scenario(stage: Stage) -> None:
        stage.prober.seconds = 3 * EXCHANGE_INTERVAL
        await trio.sleep(EXCHANGE_INTERVAL + 0.1)
        not_up = [("web", parse_address(address), 80, 0) for address in named]
        assert stage.shared == [(1, 2, not_up)]

    play(scenario, a_pair(f'health = {{ unchecked = "{unchecked}" }}'))


class OpinionsCounted(Judge):
    """A judge who counts how often one is asked."""

    asked = 0

    def __getattribute__(self, name: str) -> object:
        if name == "opinion":
            OpinionsCounted.asked += 1
        return super().__getattribute__(name)


def test_servers_that_are_up_cost_an_exchange_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next packet waits for it, and of those servers there may be thousands."""
    compared: list[dict[CheckedServer, Opinion]] = []

    class Peers(PeerOpinions):
        def compare(
            self, not_up: Mapping[CheckedServer, Opinion], *others: Any
        ) -> Iterator[Disagreement]:
            compared.append(dict(not_up))
            return super().compare(not_up, *others)

    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.prober.seconds = 100 * EXCHANGE_INTERVAL
        await trio.sleep(2 * EXCHANGE_INTERVAL)
        compared.clear()
        before, lists = OpinionsCounted.asked, len(stage.shared)
        assert before
        await trio.sleep(5 * EXCHANGE_INTERVAL)
        assert OpinionsCounted.asked == before
        assert len(stage.shared) - lists == len(compared) == 5
        assert all(each == {("web", parse_address(FIRST), 80): Opinion.DOWN} for each in compared)

    monkeypatch.setattr("lvsha.health.service_health.Judge", OpinionsCounted)
    monkeypatch.setattr("lvsha.node_health.PeerOpinions", Peers)
    play(scenario, prepare=[FIRST])


def test_thresholds_that_an_operator_sets_survive_the_checks() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.edit("-e", FIRST, "-m", "-w", "5", "-x", "100", "-y", "50")
        stage.prober.findings[FIRST] = BAD
        await trio.sleep(ROUND)
        server = next(s for each in stage.director.services for s in each.servers if s.weight == 0)
        assert (server.upper, server.lower) == (100, 50)

    play(scenario)


def test_a_weight_set_by_hand_is_the_servers_own_from_then_on() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.edit("-e", FIRST, "-m", "-w", "3")
        await trio.sleep(ROUND)
        assert stage.weights()[FIRST] == 3
        stage.prober.findings[FIRST] = BAD
        await trio.sleep(ROUND)
        assert stage.weights()[FIRST] == 0
        stage.prober.findings.clear()
        await trio.sleep(ROUND)
        assert stage.weights()[FIRST] == 3

    play(scenario)


def test_a_weight_set_by_hand_on_a_server_that_is_down_waits_until_it_is_up() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.edit("-e", FIRST, "-m", "-w", "3")
        assert stage.weights()[FIRST] == 0
        stage.prober.findings.clear()
        await trio.sleep(ROUND)
        assert stage.weights()[FIRST] == 3

    play(scenario, prepare=[FIRST])


def test_a_server_drained_by_hand_stays_drained() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.edit("-e", FIRST, "-m", "-w", "0")
        for finding in (BAD, GOOD):
            stage.prober.findings[FIRST] = finding
            await trio.sleep(ROUND)
            assert stage.weights()[FIRST] == 0
        _, servers = stage.status()
        assert (servers[FIRST]["opinion"], servers[FIRST]["own_weight"]) == ("up", 0)

    play(scenario)


def test_a_server_removed_by_hand_is_not_added_when_it_comes_back() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.edit("-d", FIRST)
        for finding in (BAD, GOOD):
            stage.prober.findings[FIRST] = finding
            await trio.sleep(ROUND)
            assert stage.weights() == {SECOND: 7}

    play(scenario, a_pair('health = { on_failure = "remove" }'))


def test_a_server_removed_by_hand_stays_away_until_it_is_added_by_hand() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.edit("-d", FIRST)
        for finding in (BAD, GOOD):
            stage.prober.findings[FIRST] = finding
            await trio.sleep(ROUND)
            assert stage.weights() == {SECOND: 7}
        _, servers = stage.status()
        assert servers[FIRST]["away"] is True
        stage.edit("-a", FIRST, "-m", "-w", "2")
        stage.prober.findings[FIRST] = BAD
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 0, SECOND: 7}
        stage.prober.findings.clear()
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 2, SECOND: 7}

    play(scenario)


def test_a_service_removed_by_hand_is_let_alone_and_checked_when_it_returns() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.ipvsadm("-C")
        stage.prober.findings[FIRST] = BAD
        await trio.sleep(ROUND)
        assert stage.weights() == {}
        stage.ipvsadm("-A", "-t", f"{VIRTUAL}:80", "-s", "rr")
        stage.edit("-a", FIRST, "-m", "-w", "2")
        assert stage.weights() == {FIRST: 0}

    play(scenario)


def test_a_failed_server_drains_and_is_removed_and_comes_back_with_a_slow_start() -> None:
    keys = 'health = { on_failure = "remove", drain = 4, slow_start = 10 }'

    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.prober.findings[FIRST] = BAD
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 0, SECOND: 7}
        await trio.sleep(4)
        assert stage.weights() == {SECOND: 7}
        assert stage.changes == 1
        assert stage.status()[1][FIRST]["reason"] == "bad"
        stage.prober.findings.clear()
        await trio.sleep(1.5)
        assert stage.weights()[FIRST] in {1, 2}
        await trio.sleep(10)
        assert stage.weights() == {FIRST: 5, SECOND: 7}
        assert stage.changes == 2

    stage = play(scenario, a_pair(keys))
    (service,) = stage.director.services
    ends = {(parse_address(address), 80) for address in (FIRST, SECOND)}
    assert stage.health.may_be_away(service) == ends


def test_the_sorry_server_stands_in_while_all_are_down() -> None:
    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 0, SECOND: 0, SORRY: 2}
        status, _ = stage.status()
        assert (status["quorum"], status["sorry"]) == ("lost", True)
        stage.prober.findings.clear()
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 5, SECOND: 7}

    keys = f'sorry_server = {{ address = "{SORRY}", weight = 2 }}'
    play(scenario, a_pair(keys), prepare=[FIRST, SECOND])


def test_commands_tell_of_the_quorum_one_after_the_other_and_the_newest_wins() -> None:
    keys = 'health = { quorum_up = ["/up", "a"], quorum_down = ["/down"], command_user = "root" }'

    async def scenario(stage: Stage) -> None:
        stage.prober.command_seconds = 8.0
        await trio.sleep(ROUND)
        for finding in (BAD, GOOD, BAD):
            stage.prober.findings = {FIRST: finding, SECOND: finding}
            await trio.sleep(ROUND)
        await trio.sleep(10)
        up, down = {"LVSHA_QUORUM": "up"}, {"LVSHA_QUORUM": "down"}
        assert stage.prober.commands == [
            ("root", ("/up", "a"), {"LVSHA_SERVICE": "web", **up}),
            ("root", ("/down",), {"LVSHA_SERVICE": "web", **down}),
        ]

    play(scenario, a_pair(keys))


@pytest.mark.parametrize(("seconds", "status"), [(0.0, "exit status 1"), (99.0, None)])
def test_a_command_that_fails_or_hangs_is_counted(seconds: float, status: str | None) -> None:
    keys = 'health = { quorum_up = ["/up"], command_timeout = 5 }'

    async def scenario(stage: Stage) -> None:
        stage.prober.command_seconds, stage.prober.status = seconds, status
        await trio.sleep(20)
        assert stage.health.counted()["commands_failed"] == 1

    play(scenario, a_pair(keys))


def test_a_script_gives_a_server_its_weight() -> None:
    async def scenario(stage: Stage) -> None:
        stage.prober.findings[FIRST] = Finding(passed=True, reason="busy", weight=2)
        await trio.sleep(ROUND)
        assert stage.weights() == {FIRST: 2, SECOND: 7}

    play(scenario)


def test_the_status_says_of_each_server_how_it_is_and_why() -> None:
    async def scenario(stage: Stage) -> None:
        status, servers = stage.status()
        assert status == {
            "quorum": "unknown", "quorum_weight": 1, "weight_up": 0, "sorry": False
        }  # fmt: skip
        assert servers[FIRST]["opinion"] == "unknown"
        await trio.sleep(ROUND)
        status, servers = stage.status()
        assert (status["quorum"], status["weight_up"]) == ("reached", 7)
        said = servers[FIRST]
        assert (said["opinion"], said["reason"], said["own_weight"]) == ("down", "bad", 5)
        assert servers[SECOND]["opinion"] == "up"

    play(scenario, prepare=[FIRST])


def test_servers_may_come_and_go_while_the_status_of_their_service_is_made() -> None:
    class Meddling(Turns):
        """The operator removes a server in the third turn."""

        passed = 0

        async def pass_on(self) -> None:
            self.passed += 1
            if self.passed == 3:
                stage.edit("-d", SECOND)
            await trio.lowlevel.checkpoint()

    stage: Stage

    async def scenario(played: Stage) -> None:
        nonlocal stage
        stage = played
        await trio.sleep(ROUND)
        (service,) = stage.director.services
        assert [server.weight for server in service.servers] == [7, 5]
        turns = Meddling()
        said = await service_status(service, stage.director, stage.health, turns)
        assert turns.passed == 4
        servers = said["servers"]
        assert isinstance(servers, list)
        assert [server["weight"] for server in servers] == [7, 5]
        assert [server["health"]["own_weight"] for server in servers] == [7, 5]

    play(scenario)


def test_a_pair_without_checks_is_let_alone() -> None:
    pair = parse_pair(
        f'[[services]]\nname = "web"\naddress = "{VIRTUAL}"\nport = 80\n'
        f'servers = [{{ address = "{FIRST}" }}]\n{NODES}',
        "pair.toml",
    )

    async def scenario(stage: Stage) -> None:
        await trio.sleep(ROUND)
        stage.health.services_changed()
        (service,) = stage.director.services
        assert stage.health.status(service) is None
        assert list(stage.health.of_servers(service)) == []

    assert play(scenario, pair).weights() == {FIRST: 1}
