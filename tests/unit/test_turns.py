"""Long work in turns with all else on the loop."""

import trio

from lvsha.turns import TURN, Turns


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_others_come_in_when_a_turn_is_over_and_not_before() -> None:
    clock = Clock()
    others: list[float] = []

    async def other() -> None:
        while True:
            others.append(clock.now)
            await trio.lowlevel.checkpoint()

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            turns = Turns(clock)
            nursery.start_soon(other)
            for _ in range(10):
                clock.now += 0.3 * TURN
                await turns.pass_on()
            nursery.cancel_scope.cancel()

    trio.run(work)
    # Two turns are over in ten pieces; the loop decides who of two comes first then.
    assert 1 <= len(others) <= 3
    assert 5.0 + TURN < others[0] < 5.0 + 2.5 * TURN
