"""The ``lvsha`` command.

Exit codes: 0 done; 1 a drill lost an established connection, or not all of a reload was
possible; 2 the configuration or the command line is wrong; 3 this machine lacks something.
"""

import faulthandler
import json
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import structlog
import trio
import typer
from rich.console import Console

import lvsha
from lvsha import control
from lvsha.config import Pair, load_pair
from lvsha.drill.exercise import run_drill
from lvsha.drill.options import DrillOptions, Failure, Method
from lvsha.errors import ConfigError, HostError, LvshaError
from lvsha.host import LinuxHost
from lvsha.ipvsadm import client
from lvsha.metrics import render as render_metrics
from lvsha.model import parse_address
from lvsha.node import Node
from lvsha.node_reload import RELOAD_SECONDS_MAX, Outcome
from lvsha.observe.command import GROUPS
from lvsha.observe.command import observe as watch_link
from lvsha.observe.display import render
from lvsha.process import let_threads_in, run_in_real_time, stay_in_memory
from lvsha.replay import Summary
from lvsha.replay import replay as replay_capture
from lvsha.settings import NAMES, Settings
from lvsha.sync import key_file
from lvsha.sync.ipvs.roster import PORT
from lvsha.sync.seal import key_id
from lvsha.view import show_receipts, show_status
from lvsha.why import ask_why, explain

EXIT_INCOMPLETE: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_HOST: Final = 3

PIPE_WIDTH: Final = 1000

_Result = TypeVar("_Result")

app = typer.Typer(
    name="lvsha",
    help="A highly available Linux Virtual Server director.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PairFile = Annotated[Path, typer.Argument(help="The pair file (TOML).", show_default=False)]
NodeName = Annotated[
    str | None,
    typer.Option("--node", help="Which node of the pair file this is; default: the host name."),
]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"lvsha {lvsha.__version__}\n")
        raise typer.Exit


@app.command()
def run(
    file: PairFile,
    node: NodeName = None,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="How log lines look.")
    ] = "text",
) -> None:
    """Run a director until it is told to stop (SIGTERM or SIGINT)."""
    _configure_logging(log_format)

    def start() -> None:
        pair = load_pair(file)
        name = _node_name(pair, file, node)
        director = _make_node(pair, file, name)
        if pair.nodes[name].lock_memory:
            stay_in_memory()
        if pair.nodes[name].realtime_priority:
            run_in_real_time(pair.nodes[name].realtime_priority)
        let_threads_in()
        try:
            trio.run(_run_until_told, director)
        except BaseExceptionGroup as group:
            # Not except*: what that raises leaves it within a group in Python 3.11.2.
            explained, others = group.split((ConfigError, HostError))
            if explained is None or others is not None:
                raise
            raise _first(explained) from None

    _explained(start)


@app.command()
def check(file: PairFile) -> None:
    """Check a pair file; says what is wrong, key by key."""

    def look() -> None:
        pair = load_pair(file)
        for name in pair.nodes:
            _make_node(pair, file, name)
        keys = pair.sync.key_file if pair.sync is not None else None
        about_keys = "" if keys is None else _check_keys(keys)
        sys.stdout.write(
            f"{file}: in order: {len(pair.nodes)} nodes, {len(pair.virtual_routers)} virtual "
            f"routers, {len(pair.services)} services; digest {pair.digest().hex()[:12]}\n"
            + about_keys
        )

    _explained(look)


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="The key file.")] = key_file.DEFAULT_PATH,
    rotate: Annotated[
        bool,
        typer.Option("--rotate", help="Add the next key; the second time, seal with it."),
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Remove the key that sealed before the rotation.")
    ] = False,
) -> None:
    """Make a key for sealing the sync link, or change it step by step."""

    def step() -> Callable[[Path], key_file.Ring]:
        if rotate and finish:
            raise ConfigError("expected --rotate or --finish, not both")
        return key_file.rotate if rotate else key_file.finish if finish else key_file.create

    ring = _explained(lambda: step()(path))
    sys.stdout.write(f"{path}: {_describe_keys(ring)}. {_advise(path, ring)}\n")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show the state of the director that runs in this network namespace."""

    def show() -> None:
        answer = control.ask("status")
        if as_json:
            sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        else:
            # What is read by a program is not wrapped.
            show_status(answer, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH))

    _explained(show)


def _metrics() -> str:
    status = control.ask("status")
    assert isinstance(status, dict)
    return render_metrics(status).decode()


@app.command()
def metrics() -> None:
    """Print the numbers of ``lvsha status`` in Prometheus's text format."""
    _explained(lambda: sys.stdout.write(_metrics()))


@app.command()
def why(
    router: Annotated[
        str | None,
        typer.Argument(help="Which virtual router; default: the one that changed last."),
    ] = None,
    peer: Annotated[
        list[Path] | None,
        typer.Option(help="Another node: its control socket, or what its why --json has printed."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="All that this node remembers, as JSON.")
    ] = False,
) -> None:
    """Explain the last change of master, event by event."""

    def tell() -> None:
        if as_json:
            sys.stdout.write(json.dumps(ask_why(), indent=2) + "\n")
        else:
            sys.stdout.write("\n".join(explain(peer or [], router)) + "\n")

    _explained(tell)


@app.command()
def handover(
    router: Annotated[
        str | None,
        typer.Argument(help="The virtual router; all that are MASTER here, if not given."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Resign with priority 0 even if nobody is known to be ready."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The receipt as JSON.")] = False,
) -> None:
    """Hand virtual routers over to the other node, which takes them over without a loss."""

    def hand_over() -> None:
        receipts = control.ask("handover", {"router": router, "force": force})
        if as_json:
            sys.stdout.write(json.dumps(receipts, indent=2) + "\n")
        else:
            show_receipts(receipts, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH))

    _explained(hand_over)


@app.command()
def reload(
    as_json: Annotated[bool, typer.Option("--json", help="What was done, as JSON.")] = False,
) -> None:
    """Have the running director take its changed pair file over; no connection ends by it."""

    def ask() -> bool:
        done = control.ask("reload", seconds=RELOAD_SECONDS_MAX)
        assert isinstance(done, dict)
        if "refused" in done:
            raise ConfigError(f"nothing has changed: {done['refused']}")
        if as_json:
            sys.stdout.write(json.dumps(done, indent=2) + "\n")
        else:
            sys.stdout.write(f"{Outcome(**done)}\n")
        return not done["troubles"]

    if not _explained(ask):
        raise typer.Exit(EXIT_INCOMPLETE)


@app.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def ipvsadm(
    words: Annotated[list[str] | None, typer.Argument(metavar="...", show_default=False)] = None,
) -> None:
    """Administer the running director in the words of ipvsadm, as in: lvsha ipvsadm -Ln."""
    raise typer.Exit(client.run(words or []))


@app.command(name="set")
def change_settings(
    changes: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", show_default=False)],
) -> None:
    """Change settings of the running director (the kernel's net.ipv4.vs.*)."""

    def change() -> None:
        values: dict[str, str | int] = {}
        for word in changes:
            name, equals, value = word.partition("=")
            if not equals:
                raise ConfigError(f"{word}: expected NAME=VALUE")
            values[name] = value
        Settings().changed(values)
        control.ask("settings", {"set": values})

    _explained(change)


@app.command(name="get")
def show_settings(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...")] = None,
) -> None:
    """Show settings of the running director, all or some."""

    def show() -> None:
        unknown = sorted(set(names or []) - set(NAMES))
        if unknown:
            raise ConfigError(f"{unknown[0]}: no such setting; there are {', '.join(NAMES)}")
        answer = control.ask("settings", {"get": names or []})
        if not isinstance(answer, dict):
            raise HostError("the director answers in a way that this version does not know")
        for name, value in answer.items():
            sys.stdout.write(f"{name} = {value}\n")

    _explained(show)


@app.command(name="clean")
def clean_up(file: PairFile, node: NodeName = None) -> None:
    """Remove what a director that died has left: addresses and interception rules."""
    _configure_logging("text")

    def sweep() -> None:
        pair = load_pair(file)
        director = _make_node(pair, file, _node_name(pair, file, node))
        with control.lock_namespace():
            trio.run(director.clean)

    _explained(sweep)


@app.command()
def drill(
    method: Annotated[Method, typer.Option(help="How packets reach the real servers.")] = "nat",
    family: Annotated[
        Literal["4", "6"], typer.Option(help="IP version of all addresses: 4 or 6.")
    ] = "4",
    streams: Annotated[int, typer.Option(help="Long connections that talk all the time.")] = 200,
    idle: Annotated[int, typer.Option(help="Connections that are silent meanwhile.")] = 200,
    churn: Annotated[float, typer.Option(help="New short connections a second.")] = 20.0,
    failure: Annotated[
        Failure, typer.Option(help="What happens to the director that holds the VIP.")
    ] = "crash",
    then_return: Annotated[
        bool, typer.Option(help="Bring the failed director back in a second act.")
    ] = True,
    advert_interval: Annotated[float, typer.Option(help="Of VRRP, in seconds.")] = 0.1,
    probe_interval: Annotated[
        float, typer.Option(help="Of the UDP flow that measures outages, in seconds.")
    ] = 0.005,
    sync_loss: Annotated[
        int,
        typer.Option(
            metavar="PERCENT", help="Of the frames on the sync network, dropped at random."
        ),
    ] = 0,
    virtual_mac: Annotated[
        bool, typer.Option(help="Give the virtual router a MAC address of its own.")
    ] = False,
    drain: Annotated[
        bool, typer.Option(help="Give a real server the weight 0 before the first act.")
    ] = False,
    directory: Annotated[
        Path, typer.Option(help="Where pair file, logs and reports are left.")
    ] = Path("drill"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="The JSON report, if not there.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="The page, if not there.")
    ] = None,
) -> None:
    """Rehearse a failure in network namespaces; exits 0 if no established connection broke."""
    options = DrillOptions(
        method=method,
        family=6 if family == "6" else 4,
        streams=streams,
        idle=idle,
        churn=churn,
        failure=failure,
        then_return=then_return,
        advert_interval=advert_interval,
        probe_interval=probe_interval,
        sync_loss=sync_loss,
        virtual_mac=virtual_mac,
        drain=drain,
        directory=directory,
        json=json_file,
        html=html_file,
    )
    raise typer.Exit(_explained(lambda: run_drill(options, Console())))


@app.command()
def observe(
    interface: Annotated[str, typer.Argument(help="Where to listen.", show_default=False)],
    seconds: Annotated[
        float | None, typer.Option(help="How long; default: until interrupted.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was found, as JSON.")] = False,
    group: Annotated[
        list[str] | None, typer.Option(help="Sync group; default: 224.0.0.81 and ff02::81.")
    ] = None,
    port: Annotated[int, typer.Option(help="First port of the sync.")] = PORT,
    ports: Annotated[int, typer.Option(help="How many ports it has.", min=1, max=64)] = 1,
) -> None:
    """Listen beside a pair of kernel IPVS and keepalived: sync stream and VRRP; changes nothing."""

    def watch() -> None:
        console = None
        if not as_json:
            console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        try:
            groups = [parse_address(text) for text in group] if group else GROUPS
        except ValueError as error:
            raise ConfigError(f"--group: expected a multicast address: {error}") from error
        found = watch_link(
            interface, console, seconds=seconds, groups=groups, port=port, ports=ports
        )
        if console is None:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
        else:
            console.print(render(found, interface))

    _explained(watch)


@app.command()
def replay(
    config: Annotated[
        Path, typer.Option("--config", help="The pair file (TOML).", show_default=False)
    ],
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="The capture (pcap or pcapng).", show_default=False)
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A capture of what leaves.", show_default=False),
    ],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="What is decided, a line for each frame.")
    ] = None,
    node: Annotated[
        str | None,
        typer.Option("--node", help="Which node of the pair file to be; default: the first."),
    ] = None,
) -> None:
    """Run a capture through a director, under the capture's clock; needs no privilege."""

    def rerun() -> Summary:
        pair = load_pair(config)
        name = next(iter(pair.nodes)) if node is None else node
        if name not in pair.nodes:
            known = ", ".join(pair.nodes)
            raise ConfigError(
                f"{config}: nodes: expected a node called {name!r}; the file has {known}"
            )
        return replay_capture(pair, name, source, target, json_file)

    summary = _explained(rerun)
    sys.stdout.write(f"{source}: {summary}\n")
    if summary.fault:
        sys.stderr.write(f"lvsha: {source}: {summary.fault}\n")
        raise typer.Exit(EXIT_CONFIGURATION)


def _check_keys(path: Path) -> str:
    """Say what a key file holds, if it is here: a pair file may be checked on any machine."""
    if not os.access(path, os.R_OK):
        return f"{path}: not looked at: this user cannot read it on this machine\n"
    return f"{path}: in order: {_describe_keys(key_file.load_ring(path))}\n"


def _describe_keys(ring: key_file.Ring) -> str:
    """Name keys by the id that datagrams show, which tells nothing else of them."""
    words = {
        key_file.Use.CURRENT: "seals",
        key_file.Use.NEXT: "is accepted too, and seals after the next step",
        key_file.Use.PREVIOUS: "is accepted still",
    }
    return "; ".join(f"key {key_id(key):02x} {words[use]}" for use, key in ring.items())


def _advise(path: Path, ring: key_file.Ring) -> str:
    """What to do after a step."""
    advice = "Copy the file to the other nodes"
    where = shlex.quote(str(path))
    if key_file.Use.NEXT in ring:
        return f"{advice}, then: lvsha keygen --rotate {where}"
    if key_file.Use.PREVIOUS in ring:
        return f"{advice}, then: lvsha keygen --finish {where}"
    return f"{advice}."


async def _run_until_told(node: Node) -> None:
    """Run a node; SIGTERM and SIGINT ask it to hand over and end, SIGHUP to reload."""
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                async for number in signals:
                    if number == signal.SIGHUP:
                        node.reload.ask()
                    else:
                        stop.set()

            nursery.start_soon(listen)
            await node.run(stop)
            nursery.cancel_scope.cancel()


def _node_name(pair: Pair, file: Path, given: str | None) -> str:
    if given is not None:
        return given
    host = socket.gethostname()
    for name in (host, host.partition(".")[0]):
        if name in pair.nodes:
            return name
    raise ConfigError(
        f"{file}: nodes: expected one called like this host ({host}), or the option --node "
        f"with one of {', '.join(pair.nodes)}"
    )


def _make_node(pair: Pair, file: Path, name: str) -> Node:
    try:
        return Node(pair, name, LinuxHost(), file)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _first(group: BaseExceptionGroup[LvshaError]) -> Exception:
    """The first single exception of a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConfigError | HostError)
    return error


def _explained(action: Callable[[], _Result]) -> _Result:
    """Turn what an operator can mend into a sentence and an exit code."""
    try:
        return action()
    except ConfigError as error:
        sys.stderr.write(f"lvsha: {error}\n")
        raise typer.Exit(EXIT_CONFIGURATION) from error
    except HostError as error:
        sys.stderr.write(f"lvsha: {error}\n")
        raise typer.Exit(EXIT_HOST) from error


def _configure_logging(log_format: str) -> None:
    """Log lines go to standard error, one a line, where the journal picks them up."""
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def main() -> None:
    """The entry point."""
    # A director that the watchdog ends says where it was.
    faulthandler.enable()
    app()
