"""Readers of the event socket, and programs that are told: nobody is ever waited for."""

import json
import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from lvsha.errors import HostError
from lvsha.events import LINES_MAX, READERS_MAX, EventServer, EventStream, event_socket_path
from lvsha.notifications import RUNNING_MAX, WAITING_MAX, Change, Notifications, Receiver
from lvsha.programs import Outcome

ALL = frozenset({"MASTER", "BACKUP", "FAULT", "STOP"})


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LVSHA_RUNTIME_DIR", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []


@asynccontextmanager
async def served(stream: EventStream, group: str | None = None) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(EventServer(stream, group).run)
        yield
        nursery.cancel_scope.cancel()


class Lines:
    """What a reader reads."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def next(self) -> dict[str, object]:
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some(65_536)
            assert data, "the end"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))


async def connected() -> Lines:
    return Lines(await trio.open_unix_socket(event_socket_path()))


def stream() -> EventStream:
    return EventStream(lambda: {"node": "east"})


def test_a_reader_is_told_how_things_are_and_then_what_happens() -> None:
    async def main() -> None:
        events = stream()
        async with served(events):
            reader = await connected()
            first = await reader.next()
            assert (first["event"], first["node"]) == ("present", "east")
            events.publish("state", router="web", new="MASTER")
            said = await reader.next()
            assert (said["event"], said["router"], said["new"]) == ("state", "web", "MASTER")
            await reader.stream.aclose()

    trio.run(main)


def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    async def main() -> None:
        events = stream()
        quick, slow = events.add(), events.add()
        assert quick is not None
        assert slow is not None
        for _ in (quick, slow):
            await quick.next() if _ is quick else await slow.next()
        for number in range(LINES_MAX + 12):
            events.publish("number", number=number)
            assert json.loads(await quick.next())["number"] == number
        lost = json.loads(await slow.next())
        assert (lost["event"], lost["count"]) == ("lost", 12)
        kept = [json.loads(await slow.next())["number"] for _ in range(LINES_MAX)]
        assert kept == list(range(12, LINES_MAX + 12))

    trio.run(main)


def test_a_reader_that_never_reads_holds_nothing_up() -> None:
    async def main() -> None:
        events = stream()
        async with served(events):
            idle, reader = await connected(), await connected()
            await reader.next()
            for number in range(3000):
                events.publish("number", number=number, filling="x" * 500)
                assert (await reader.next())["number"] == number
            await idle.next()
            seen: list[dict[str, object]] = []
            while not seen or seen[-1].get("number") != 2999:
                seen.append(await idle.next())
            lost = [event["count"] for event in seen if event["event"] == "lost"]
            assert len(lost) == 1
            assert len(seen) - 1 + int(str(lost[0])) == 3000
            await idle.stream.aclose()
            await reader.stream.aclose()

    trio.run(main)


def test_further_readers_are_turned_away_until_one_goes() -> None:
    async def main() -> None:
        events = stream()
        async with served(events):
            readers = [await connected() for _ in range(READERS_MAX)]
            for reader in readers:
                await reader.next()
            one_more = await connected()
            assert await one_more.stream.receive_some() == b""
            await readers.pop().stream.aclose()
            await trio.testing.wait_all_tasks_blocked(0.05)
            last = await connected()
            assert (await last.next())["event"] == "present"
            for reader in (*readers, one_more, last):
                await reader.stream.aclose()
            assert events.counters["readers_refused"] == 1

    trio.run(main)


def permissions() -> tuple[int, int]:
    found = event_socket_path().stat()
    return stat.S_IMODE(found.st_mode), found.st_gid


def test_the_socket_belongs_to_its_owner_or_to_a_group_as_well() -> None:
    async def main() -> None:
        async with served(stream()):
            assert permissions()[0] == 0o600
        if os.geteuid() == 0:
            async with served(stream(), "daemon"):
                assert permissions() == (0o660, 1)

    trio.run(main)


def test_a_group_that_is_not_there_is_refused() -> None:
    async def main() -> None:
        await EventServer(stream(), "nobody-here").run()

    with pytest.raises(HostError, match="no group 'nobody-here'"):
        trio.run(main)


# Programs


class Programs:
    """Runs programs that take a while, in memory."""

    def __init__(self, seconds: float = 1.0, code: int = 0) -> None:
        self.told: list[tuple[float, str]] = []
        self.running = 0
        self.most = 0
        self._seconds = seconds
        self._code = code

    async def __call__(
        self,
        command: Sequence[str],
        *,
        user: str | None,
        seconds_max: float,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        self.told.append((trio.current_time(), " ".join(command)))
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(self._seconds)
        self.running -= 1
        return Outcome(self._code)


def change(number: int = 1, state: str = "MASTER", name: str = "web") -> Change:
    return Change("INSTANCE", name, state, number)


def receiver(*, states: frozenset[str] = ALL, about: tuple[str, str] | None = None) -> Receiver:
    return Receiver(("/bin/tell",), None, 10.0, states, about)


def play(
    notifications: Notifications, changes: Sequence[Change], *, finish: float = 1000.0
) -> float:
    async def main() -> float:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifications.run)
            await trio.sleep(0.1)
            for one in changes:
                notifications.tell(one)
            began = trio.current_time()
            await notifications.finish(finish)
            took = trio.current_time() - began
            nursery.cancel_scope.cancel()
        return took

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_program_hears_of_one_change_after_the_other_in_keepaliveds_words() -> None:
    programs = Programs()
    told = Notifications([receiver()], programs, {})
    assert play(told, [change(100, "BACKUP"), change(90)]) == pytest.approx(2.0)
    assert [words for _, words in programs.told] == [
        "/bin/tell INSTANCE web BACKUP 100",
        "/bin/tell INSTANCE web MASTER 90",
    ]
    assert programs.most == 1


def test_a_program_hears_of_what_it_wants_only() -> None:
    programs = Programs()
    receivers = [
        receiver(states=frozenset({"FAULT"})),
        receiver(about=("INSTANCE", "mail")),
        receiver(about=("GROUP", "web")),
    ]
    play(Notifications(receivers, programs, {}), [change(state="BACKUP"), change(name="mail")])
    assert [words for _, words in programs.told] == ["/bin/tell INSTANCE mail MASTER 1"]


def test_a_program_that_is_too_slow_loses_the_oldest() -> None:
    programs = Programs()
    told = Notifications([receiver()], programs, {})
    play(told, [change(number) for number in range(WAITING_MAX + 5)])
    assert len(programs.told) == WAITING_MAX
    assert programs.told[0][1].endswith(" 5")
    assert told.counters["notifications_dropped"] == 5


def test_programs_of_different_receivers_run_side_by_side_but_not_too_many() -> None:
    programs = Programs()
    play(Notifications([receiver() for _ in range(RUNNING_MAX + 3)], programs, {}), [change()])
    assert programs.most == RUNNING_MAX
    assert len(programs.told) == RUNNING_MAX + 3


def test_the_end_waits_for_a_bounded_time() -> None:
    told = Notifications([receiver()], Programs(seconds=100.0), {})
    assert play(told, [change()], finish=3.0) == pytest.approx(3.0)


def test_failures_are_counted() -> None:
    told = Notifications([receiver()], Programs(code=1), {})
    play(told, [change(), change()])
    assert told.status() == {
        "waiting": 0,
        "counters": {"notifications": 2, "notifications_failed": 2},
    }
