"""The course of one drill: build, start, load, act, watch, finish.

This runs inside the private world (see `seclusion`) and is its first process. It
starts the real program in both directors and the drill's own programs elsewhere, does
to the directors what the options say, and returns what was seen. It judges nothing.

Every wait has a limit. Whatever happens, the processes are ended: by this module on
its way out, and by the kernel when the private world ends with this process.

Times are seconds on the host's monotonic clock.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from lvsha.drill import laboratory
from lvsha.drill.client_program import ClientProgram
from lvsha.drill.directors import Director, program_environment
from lvsha.drill.laboratory import DIRECTORS, REAL_SERVERS, TCP_PORT, UDP_PORT, Plan
from lvsha.drill.options import DrillOptions
from lvsha.drill.recording import (
    ROUTER,
    Act,
    Recording,
    Standstill,
    StateSeen,
    SyncFrames,
    decode_load,
)
from lvsha.errors import HostError

START_TIME_MAX: Final = 20.0
"""For a program of the drill to say that it is ready; loaded machines are slow."""

ROLES_TIME_MAX: Final = 30.0
OPEN_TIME_MAX: Final = 60.0
STOP_TIME_MAX: Final = 10.0
SETTLE: Final = 2.0
"""Steady load before an act, so that connections of every age exist."""

AFTERWARDS: Final = 3.0
"""How long an act is watched at least once its heir is MASTER."""

POLL: Final = 0.05

FIRST, SECOND = DIRECTORS

DOWN: Final = "DOWN"
STOPPED: Final = "STOPPED"

ACT_TITLES: Final = {
    "crash": "{node} is killed (SIGKILL)",
    "power": "the power of {node} is cut",
    "boot": "{node} has power again and comes back",
    "handover": "{node} hands over (lvsha handover)",
    "back": "{node} is handed its place again",
    "stop": "{node} is stopped cleanly (SIGTERM)",
    "hang": "{node} hangs (SIGSTOP)",
    "other": "{node} is killed, too (SIGKILL)",
    "sync": "the cable of {node} to the sync network is pulled",
    "replug": "the cable of {node} to the sync network is plugged in again",
    "partition": "no VRRP message of {node} or the other arrives any more",
    "heal": "VRRP messages arrive again",
    "link": "the outside cable of {node} is pulled",
    "home": "{node} comes back and is handed its virtual router",
    "return": "{node} comes back with the higher priority",
    "wake": "{node} wakes up (SIGCONT)",
    "plug": "the cable of {node} is plugged in again",
    "reload": "{node} and its peer take a changed pair file over (lvsha reload)",
    "restore": "{node} and its peer take the former pair file over",
}


class Observer(Protocol):
    """Who is told how the drill goes, for a person."""

    def begin(self, phase: str) -> None:
        """A phase began."""

    def note(self, detail: str) -> None:
        """Something about the running phase that changes quickly."""

    def end(self, result: str) -> None:
        """The running phase is over."""


class Rehearsal:
    """One drill."""

    def __init__(
        self,
        options: DrillOptions,
        observer: Observer,
        make_director: Callable[[str, Path, Path], Director] = Director,
    ) -> None:
        self._options = options
        self._observer = observer
        self._plan = Plan(options.method, options.family, mutual=options.failure == "mutual")
        self._directory = options.directory
        self.pair_path = self._directory / "pair.toml"
        self._directors = {
            name: make_director(name, self.pair_path, self._directory / f"{name}.log")
            for name in DIRECTORS
        }
        self._programs: list[subprocess.Popen[bytes]] = []
        self._states: list[StateSeen] = []
        # An outage of three intervals and more must leave time for TCP to try again.
        self._patience = 6.0 + 6 * options.advert_interval

    async def run(self) -> Recording:
        """Carry the drill out.

        Raises:
            HostError: it could not be carried out; says why.
        """
        began_at = time.monotonic()
        try:
            self._observer.begin("networks")
            laboratory.prepare_private_world()
            laboratory.build(self._plan)
            if self._options.sync_loss:
                laboratory.lose_sync_frames(self._options.sync_loss)
            self._write_files()
            self._observer.end(self._described())
            self._start_real_servers()
            await self._wait_for_addresses()
            async with trio.open_nursery() as nursery:
                await self._start_directors(nursery)
                with self._watching_the_machine():
                    acts = await self._load_and_act(nursery)
                nursery.cancel_scope.cancel()
            lossy = self._options.sync_loss > 0
            frames = laboratory.count_sync_frames() if lossy else SyncFrames()
        finally:
            self._end_programs()
        load = decode_load(self._load_path.read_text(encoding="utf-8"))
        noticed = json.loads(self._standstills_path.read_text(encoding="utf-8"))
        return Recording(
            acts=tuple(acts),
            states=tuple(self._states),
            load=load,
            began_at=began_at,
            ended_at=time.monotonic(),
            sync_frames=frames,
            standstills=tuple(Standstill(*entry) for entry in noticed),
        )

    def _described(self) -> str:
        hosts = "a client, 2 directors, 3 real servers"
        loss = self._options.sync_loss
        return f"{hosts}; the sync network drops {loss} %" if loss else hosts

    @property
    def _load_path(self) -> Path:
        return self._directory / "samples.json"

    @property
    def _standstills_path(self) -> Path:
        return self._directory / "standstills.json"

    @contextmanager
    def _watching_the_machine(self) -> Iterator[None]:
        """Have it noticed when the machine itself stands still; the file is there afterwards."""
        result = ["--result", str(self._standstills_path)]
        command = [sys.executable, "-m", "lvsha.drill.standstill", *result]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=program_environment()
        ) as watching:
            assert watching.stdin is not None
            assert watching.stdout is not None
            if watching.stdout.readline() != b"ready\n":
                raise HostError("what notices standstills of the machine did not start")
            yield
            watching.stdin.close()
            try:
                watching.wait(STOP_TIME_MAX)
            except subprocess.TimeoutExpired as error:
                watching.kill()
                raise HostError("what notices standstills of the machine did not end") from error

    def _write_files(self) -> None:
        try:
            logs = [director.log for director in self._directors.values()]
            for path in (*logs, self._load_path, self._standstills_path):
                path.unlink(missing_ok=True)
            self._write_pair(changed=False)
        except OSError as error:
            raise HostError(f"{error.filename}: cannot be written: {error.strerror}") from error

    def _start_real_servers(self) -> None:
        """Start what answers, and the tunnels' far ends; wait until each is ready."""
        self._observer.begin("real servers")
        for name in REAL_SERVERS:
            addresses = self._plan.server_addresses(name)
            ports = ["--tcp-port", str(TCP_PORT), "--udp-port", str(UDP_PORT)]
            self._start_program(
                name, ["lvsha.drill.realserver", "--name", name, "--address", *addresses, *ports]
            )
            if self._plan.method == "tun":
                self._start_program(
                    name, ["lvsha.drill.tunnelend", "--virtual", *self._plan.virtuals]
                )
        for program in self._programs:
            assert program.stdout is not None
            with program.stdout as output:
                # End of output means that it is gone; its complaint is in the log.
                if output.readline() != b"ready\n":
                    raise HostError(f"a real server did not start; see {self._directory}/real.log")
        self._observer.end(f"{', '.join(REAL_SERVERS)} answer")

    def _start_program(self, namespace: str, module: Sequence[str]) -> None:
        with (self._directory / "real.log").open("ab") as log:
            self._programs.append(
                subprocess.Popen(
                    laboratory.enter(namespace, [sys.executable, "-m", *module]),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=program_environment(),
                )
            )

    async def _wait_for_addresses(self) -> None:
        """Let duplicate address detection end before a director needs its addresses."""
        deadline = time.monotonic() + START_TIME_MAX
        while any(laboratory.tentative_addresses(name) for name in DIRECTORS):
            if time.monotonic() > deadline:
                raise HostError("an IPv6 address of a director stayed tentative")
            await trio.sleep(POLL)

    async def _start_directors(self, nursery: trio.Nursery) -> None:
        self._observer.begin("directors")
        for director in self._directors.values():
            await director.start()
            nursery.start_soon(self._watch, director)
        if self._plan.mutual:
            await self._wait(
                lambda: all(
                    any(self._state(node, router.name) == "MASTER" for node in DIRECTORS)
                    for router in self._plan.routers
                ),
                ROLES_TIME_MAX,
                "each virtual router has a MASTER",
            )
            for router in self._plan.routers:
                if self._state(router.home, router.name) != "MASTER":
                    await self._hand_back(self._directors[router.home], router.name)
        await self._wait(
            lambda: all(
                self._state(node, router.name) == ("MASTER" if node == router.home else "BACKUP")
                for router in self._plan.routers
                for node in DIRECTORS
            ),
            ROLES_TIME_MAX,
            "each virtual router is MASTER at its home and BACKUP at the other",
        )
        for name, director in self._directors.items():
            if any(router.home != name for router in self._plan.routers):
                await self._wait_for_copy(director)
        if self._options.failure == "return":
            await self._stop(self._directors[FIRST])
            await self._wait(
                lambda: self._state(SECOND) == "MASTER", ROLES_TIME_MAX, f"{SECOND} is MASTER"
            )
            self._observer.end(f"{FIRST} is stopped, {SECOND} is MASTER")
        elif self._plan.mutual:
            homes = [f"{router.home} is MASTER of {router.name}" for router in self._plan.routers]
            self._observer.end(", ".join(homes))
        else:
            self._observer.end(f"{FIRST} is MASTER, {SECOND} is BACKUP with a complete copy")

    async def _wait_for_copy(self, director: Director) -> None:
        """Wait until a director has all connections of the other."""
        deadline = time.monotonic() + ROLES_TIME_MAX
        while (status := await director.status()) is None or not status.complete:
            if time.monotonic() > deadline:
                raise HostError(
                    f"the copy of {director.name} was not complete in {ROLES_TIME_MAX:.0f} s; "
                    f"the end of {director.log}:\n{director.log_tail()}"
                )
            await self._watch_for(POLL)

    async def _load_and_act(self, nursery: trio.Nursery) -> list[Act]:
        self._observer.begin("load")
        with (self._directory / "client.log").open("wb") as log:
            process = await trio.lowlevel.open_process(
                laboratory.enter("client", [sys.executable, *self._client_arguments()]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=program_environment(),
            )
        try:
            client = ClientProgram(process, self._observer.note)
            nursery.start_soon(client.listen)
            opened = await client.tell("open", OPEN_TIME_MAX)
            await self._watch_for(SETTLE)
            if self._options.drain:
                for director in self._directors.values():
                    await self._drain(director)
            self._observer.end(f"{opened['opened']} of {opened['wanted']} long connections open")
            acts = await self._acts(client)
            self._observer.begin("last answers")
            await client.tell("finish", self._patience + STOP_TIME_MAX)
            self._observer.end("everything is in")
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_TIME_MAX):
                await process.wait()
        return acts

    def _client_arguments(self) -> list[str]:
        options = self._options
        values = {
            "tcp-port": TCP_PORT,
            "udp-port": UDP_PORT,
            "streams": options.streams,
            "idle": options.idle,
            "churn": options.churn,
            "message-interval": options.message_interval,
            "probe-interval": options.probe_interval,
            "patience": self._patience,
            "result": self._load_path,
        }
        arguments = ["-m", "lvsha.drill.client", "--address", *self._plan.virtuals]
        for name, value in values.items():
            arguments += [f"--{name}", str(value)]
        return arguments

    async def _acts(self, client: ClientProgram) -> list[Act]:
        first = self._directors[FIRST]
        name = self._options.failure
        if name == "return":
            return [await self._act(client, "return", first, FIRST, self._start_again)]
        if name == "mutual":
            return await self._each_dies_and_returns(client)
        deeds: dict[str, tuple[Callable[[Director], Awaitable[None]], str]] = {
            "crash": (self._kill, "return"),
            "power": (self._cut_power, "boot"),
            "both": (self._kill, "return"),
            "handover": (self._hand_over, "back"),
            "stop": (self._stop, "return"),
            "hang": (self._hang, "wake"),
            "link": (self._pull, "plug"),
            "sync": (self._pull_sync, "replug"),
            "partition": (self._part, "heal"),
            "reload": (self._reload, "restore"),
        }
        deed, sequel = deeds[name]
        title = "crash" if name == "both" else name
        heir = FIRST if name in {"sync", "reload"} else SECOND
        acts = [await self._act(client, title, first, heir, deed)]
        if self._options.then_return or name == "both":
            undo = {
                "return": self._start_again,
                "boot": self._boot,
                "back": self._hand_back,
                "wake": self._wake,
                "plug": self._plug,
                "replug": self._plug_sync,
                "heal": self._heal,
                "restore": self._restore,
            }[sequel]
            acts.append(await self._act(client, sequel, first, FIRST, undo))
        elif first.stopped:
            await self._wake(first)
        if name == "both":
            # The one that has come back has its connections from the other, which goes now.
            second = self._directors[SECOND]
            acts.append(await self._act(client, "other", second, FIRST, self._kill))
        return acts

    async def _each_dies_and_returns(self, client: ClientProgram) -> list[Act]:
        """Of two that back each other up, the one and then the other."""
        acts = []
        for router in self._plan.routers:
            home = self._directors[router.home]
            (other,) = (name for name in DIRECTORS if name != router.home)
            acts += [
                await self._act(client, "crash", home, other, self._kill, router.name),
                await self._act(client, "home", home, router.home, self._return_home, router.name),
            ]
        return acts

    async def _act(
        self,
        client: ClientProgram,
        name: str,
        director: Director,
        heir: str,
        deed: Callable[[Director], Awaitable[None]],
        router: str = ROUTER,
    ) -> Act:
        """Do something to a director and watch until the effect is over."""
        self._observer.begin(ACT_TITLES[name].format(node=director.name))
        at = time.monotonic()
        await deed(director)
        deadline = at + ROLES_TIME_MAX
        while self._state(heir, router) != "MASTER" and time.monotonic() < deadline:
            await self._watch_for(POLL)
        took_over = self._state(heir, router) == "MASTER"
        await self._watch_for(max(at + self._options.observe - time.monotonic(), AFTERWARDS))
        await client.tell("use-idle", self._patience + STOP_TIME_MAX)
        until = time.monotonic()
        self._observer.end(f"{heir} is MASTER" if took_over else f"{heir} did not become MASTER")
        return Act(name, director.name, heir, at, until, router)

    async def _kill(self, director: Director) -> None:
        director.expected = False
        director.signal(signal.SIGKILL)
        self._saw_all(director.name, DOWN)
        await director.wait_end(STOP_TIME_MAX)

    async def _cut_power(self, director: Director) -> None:
        """Nothing of it answers any more, its kernel neither."""
        laboratory.pull_all_cables(self._plan, director.name)
        await self._kill(director)

    async def _boot(self, director: Director) -> None:
        laboratory.forget_addresses(self._plan, director.name)
        laboratory.plug_all_cables(self._plan, director.name)
        await director.start()

    async def _stop(self, director: Director) -> None:
        director.expected = False
        director.signal(signal.SIGTERM)
        if not await director.wait_end(STOP_TIME_MAX):
            raise HostError(
                f"{director.name} did not end {STOP_TIME_MAX:.0f} s after SIGTERM; "
                f"see {director.log}"
            )
        self._saw_all(director.name, DOWN)

    async def _hand_over(self, director: Director) -> None:
        await director.hand_over(ROUTER)

    async def _return_home(self, director: Director) -> None:
        """Start a director again, and have its own virtual router handed over to it."""
        await director.start()
        (router,) = (one.name for one in self._plan.routers if one.home == director.name)
        await self._hand_back(director, router)

    async def _hand_back(self, director: Director, router: str = ROUTER) -> None:
        """Have the other one hand over to a director, once that has all connections again."""
        other = next(each for each in self._directors.values() if each is not director)
        deadline = trio.current_time() + ROLES_TIME_MAX
        while True:
            try:
                await other.hand_over(router)
            except HostError:
                if trio.current_time() > deadline:
                    raise
            else:
                return
            await trio.sleep(POLL)

    async def _start_again(self, director: Director) -> None:
        await director.start()

    async def _reload(self, director: Director) -> None:
        await self._take_over(director, changed=True)

    async def _restore(self, director: Director) -> None:
        await self._take_over(director, changed=False)

    async def _take_over(self, director: Director, *, changed: bool) -> None:
        """Have both take a pair file over, as an operator does: first the backup."""
        self._write_pair(changed=changed)
        for each in sorted(self._directors.values(), key=lambda one: one is director):
            await each.reload()

    def _write_pair(self, *, changed: bool) -> None:
        options = self._options
        text = self._plan.pair_file(
            options.advert_interval, virtual_mac=options.virtual_mac, changed=changed
        )
        self.pair_path.write_text(text, encoding="utf-8")

    async def _drain(self, director: Director) -> None:
        """Give the first real server the weight 0, as an operator does before its maintenance."""
        if director.running:
            for words in self._plan.draining():
                await director.administer(words)

    async def _hang(self, director: Director) -> None:
        director.signal(signal.SIGSTOP)
        director.stopped = True
        self._saw_all(director.name, STOPPED)

    async def _wake(self, director: Director) -> None:
        director.signal(signal.SIGCONT)
        director.stopped = False
        status = await director.status()
        for router, state in {} if status is None else status.states.items():
            self._saw(director.name, router, state)

    async def _pull_sync(self, director: Director) -> None:
        laboratory.pull_cable("sync", director.name)

    async def _plug_sync(self, director: Director) -> None:
        laboratory.plug_cable("sync", director.name)

    async def _part(self, _director: Director) -> None:
        laboratory.stop_advertisements()

    async def _heal(self, _director: Director) -> None:
        laboratory.pass_advertisements()

    async def _pull(self, director: Director) -> None:
        laboratory.pull_cable("outside", director.name)

    async def _plug(self, director: Director) -> None:
        laboratory.plug_cable("outside", director.name)

    async def _watch(self, director: Director) -> None:
        """Note every change of what a director says of itself."""
        while True:
            await director.follow(partial(self._heard, director))
            if not director.running:
                self._saw_all(director.name, DOWN)
            await trio.sleep(POLL)

    def _heard(self, director: Director, router: str, state: str) -> None:
        # What was on its way when it was stopped or killed says nothing now.
        if not director.stopped and not director.killed:
            self._saw(director.name, router, state)

    def _saw_all(self, node: str, state: str) -> None:
        """A director is this for all virtual routers."""
        for router in self._plan.routers:
            self._saw(node, router.name, state)

    def _saw(self, node: str, router: str, state: str) -> None:
        if self._state(node, router) != state:
            self._states.append(StateSeen(time.monotonic(), node, state, router))

    def _state(self, node: str, router: str = ROUTER) -> str:
        return next(
            (
                seen.state
                for seen in reversed(self._states)
                if (seen.node, seen.router) == (node, router)
            ),
            DOWN,
        )

    async def _wait(self, condition: Callable[[], bool], limit: float, meaning: str) -> None:
        """Wait until a condition holds of the directors.

        Raises:
            HostError: a director ended, or the time was not enough.
        """
        deadline = time.monotonic() + limit
        while not condition():
            for director in self._directors.values():
                if director.expected and not director.running:
                    raise HostError(
                        f"the director {director.name} ended by itself; "
                        f"the end of {director.log}:\n{director.log_tail()}"
                    )
            if time.monotonic() > deadline:
                states = ", ".join(f"{name} is {self._state(name)}" for name in DIRECTORS)
                tails = "\n".join(
                    f"{director.log}:\n{director.log_tail()}"
                    for director in self._directors.values()
                )
                raise HostError(
                    f"in {limit:.0f} s it did not come to: {meaning} ({states})\n{tails}"
                )
            await trio.sleep(POLL)

    async def _watch_for(self, duration: float) -> None:
        """Let time pass, and notice a director that ends by itself."""
        end = time.monotonic() + duration
        await self._wait(lambda: time.monotonic() >= end, duration + START_TIME_MAX, "time passes")

    def _end_programs(self) -> None:
        for director in self._directors.values():
            director.end()
        for program in self._programs:
            program.kill()
            program.wait()
