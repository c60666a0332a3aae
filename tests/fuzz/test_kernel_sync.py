"""A short run of the fuzzer of the kernel's sync protocol, and proof that it finds faults."""

from collections.abc import Callable
from typing import Any

import pytest

from lvsha.datapath.stand_ins import StandIns
from lvsha.sync.ipvs import messages
from lvsha.sync.ipvs.backup import Backup
from lvsha.tally import Tally
from tests.fuzz.checks import BrokenRuleError
from tests.fuzz.kernel_sync import KINDS, run
from tests.fuzz.run import CHECK_EVERY

RUNS = 5
STEPS = 300


def test_hostile_datagrams_break_no_rule() -> None:
    outcomes = sum((run(f"test/{number}", STEPS) for number in range(RUNS)), run("test", STEPS))
    assert outcomes["records"] > 1000
    assert outcomes["records_refused_stand_ins_full"]
    assert len(KINDS & set(outcomes)) > 8


def test_a_seed_gives_the_same_run() -> None:
    assert run("again", CHECK_EVERY * 3) == run("again", CHECK_EVERY * 3)


def _raising(original: Callable[..., Any]) -> Callable[..., Any]:
    def read(self: object, data: bytes) -> str | None:
        if len(data) > 2 and data[1] > len(data):
            raise IndexError("planted")
        found: str | None = original(self, data)
        return found

    return read


def _forgetful(original: Callable[..., Any]) -> Callable[..., Any]:
    def retell(self: Tally, key: bytes, server: bytes, port: int, old: int, new: int) -> None:
        if key[0] < 0x80:
            original(self, key, server, port, old, new)

    return retell


def _runs(number: int) -> None:
    for each in range(number):
        run(f"planted/{each}", STEPS)


def _unlimited(original: Callable[..., Any]) -> Callable[..., Any]:
    def get(self: StandIns, *arguments: Any) -> Any:
        kept = dict(self._servers)
        self._servers.clear()
        found = original(self, *arguments)
        for key, server in kept.items():
            self._servers.setdefault(key, server)
        return found

    return get


@pytest.mark.parametrize(
    ("where", "name", "plant", "error"),
    [
        (messages._Options, "read", _raising, IndexError),
        (Backup, "_fault", lambda _: lambda *_: "a kind of its own", BrokenRuleError),
        (Tally, "retell", _forgetful, BrokenRuleError),
        (StandIns, "get", _unlimited, BrokenRuleError),
    ],
)
def test_what_is_planted_is_found(
    where: object,
    name: str,
    plant: Callable[[Any], Any],
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(where, name, plant(getattr(where, name)))
    with pytest.raises(error):
        _runs(10)
