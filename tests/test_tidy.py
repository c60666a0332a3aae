"""The rules of the source tree that a reader relies on; see docs/architecture.md.

Each module of ``lvsha`` has a level. Imports point down or stay on the level; the parts
never import one another; and up to level 2 nothing can read a clock, draw a random number,
wait, or do I/O, because the modules that could are not imported.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lvsha"

# The first pattern that fits a module's name decides. 0 nouns, 1 bytes, 2 cores, 3 shells,
# 4 where the parts meet, 5 the command.
LEVELS = (
    ("lvsha", 0),
    ("lvsha.model", 0),
    ("lvsha.errors", 0),
    ("lvsha.counters", 0),
    ("lvsha.tally", 0),
    ("lvsha.runs", 0),
    ("lvsha.datapath.reasons", 0),
    ("lvsha.wire", 1),
    ("lvsha.wire.*", 1),
    ("lvsha.config", 1),
    ("lvsha.config_*", 1),
    ("lvsha.settings", 1),
    ("lvsha.capture", 1),
    ("lvsha.sync.checked", 1),
    ("lvsha.sync.datagrams", 1),
    ("lvsha.sync.messages", 1),
    ("lvsha.sync.records", 1),
    ("lvsha.sync.plain_records", 1),
    ("lvsha.drill.options", 1),
    ("lvsha.drill.recording", 1),
    ("lvsha.drill.timeline", 2),
    ("lvsha.datapath.forwarder", 3),
    ("lvsha.datapath.interception", 3),
    ("lvsha.datapath.tap", 3),
    ("lvsha.datapath.watcher", 3),
    ("lvsha.datapath.guard", 3),
    ("lvsha.datapath.host_link", 3),
    ("lvsha.datapath.pulse", 3),
    ("lvsha.datapath.memory", 3),
    ("lvsha.datapath.garbage", 3),
    ("lvsha.datapath", 0),
    ("lvsha.datapath.*", 2),
    ("lvsha.sync.courier", 3),
    ("lvsha.sync.key_file", 3),
    ("lvsha.sync.loopback", 3),
    ("lvsha.sync.transport", 3),
    ("lvsha.sync", 0),
    ("lvsha.sync.ipvs", 0),
    ("lvsha.sync.ipvs.messages", 1),
    ("lvsha.sync.ipvs.daemons", 3),
    ("lvsha.sync.*", 2),
    ("lvsha.failover.actions", 2),
    ("lvsha.failover.black_box", 2),
    ("lvsha.failover.election", 2),
    ("lvsha.failover.heard", 2),
    ("lvsha.failover.readiness", 2),
    ("lvsha.failover.reception", 2),
    ("lvsha.failover.second_path", 2),
    ("lvsha.failover.series", 2),
    ("lvsha.failover.timeline", 2),
    ("lvsha.failover.tracking", 2),
    ("lvsha.failover.verification", 2),
    ("lvsha.failover", 0),
    ("lvsha.failover.*", 3),
    ("lvsha.health", 0),
    ("lvsha.health.opinions", 0),
    ("lvsha.health.judge", 2),
    ("lvsha.health.service_health", 2),
    ("lvsha.health.*", 3),
    ("lvsha.tracking", 0),
    ("lvsha.tracking.tables", 2),
    ("lvsha.tracking.*", 3),
    ("lvsha.programs", 3),
    ("lvsha.process_table", 3),
    ("lvsha.turns", 3),
    ("lvsha.events", 3),
    ("lvsha.notifications", 3),
    ("lvsha.fencing", 3),
    ("lvsha.ipvsadm.client", 3),
    ("lvsha.ipvsadm.resolver", 3),
    ("lvsha.ipvsadm", 0),
    ("lvsha.ipvsadm.*", 2),
    ("lvsha.observe", 0),
    ("lvsha.observe.command", 4),
    ("lvsha.observe.listener", 3),
    ("lvsha.observe.display", 3),
    ("lvsha.observe.*", 2),
    ("lvsha.log", 3),
    ("lvsha.interfaces", 3),
    ("lvsha.control", 3),
    ("lvsha.view", 3),
    ("lvsha.service_manager", 3),
    ("lvsha.metrics", 3),
    ("lvsha.metrics_server", 3),
    ("lvsha.process", 3),
    ("lvsha.state_file", 3),
    ("lvsha.saved_state", 2),
    ("lvsha.vigil", 3),
    ("lvsha.build", 4),
    ("lvsha.surroundings", 4),
    ("lvsha.rerun", 4),
    ("lvsha.recorder", 4),
    ("lvsha.preemption", 4),
    ("lvsha.reload", 4),
    ("lvsha.build_failover", 4),
    ("lvsha.keeper", 4),
    ("lvsha.node_reload", 4),
    ("lvsha.reload_planner", 4),
    ("lvsha.service_changes", 4),
    ("lvsha.takeover", 4),
    ("lvsha.why", 4),
    ("lvsha.replay", 4),
    ("lvsha.administration", 4),
    ("lvsha.connection_store", 4),
    ("lvsha.sync_daemons", 4),
    ("lvsha.service_status", 4),
    ("lvsha.host", 4),
    ("lvsha.node", 4),
    ("lvsha.node_health", 4),
    ("lvsha.node_second_path", 4),
    ("lvsha.node_sync", 4),
    ("lvsha.node_tracking", 4),
    ("lvsha.node_state", 4),
    ("lvsha.handover", 4),
    ("lvsha.drill", 4),
    ("lvsha.drill.*", 4),
    ("lvsha.cli", 5),
    ("lvsha.__main__", 5),
)
CORE = 2
"""The highest level that is free of clocks, dice and I/O."""

UNCLEAN = frozenset(
    {
        "asyncio",
        "concurrent",
        "datetime",
        "logging",
        "multiprocessing",
        "netifaces",
        "os",
        "pyroute2",
        "random",
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "structlog",
        "subprocess",
        "threading",
        "time",
        "trio",
        "uuid",
    }
)
PARTS = ("lvsha.datapath", "lvsha.sync", "lvsha.failover", "lvsha.health")
VAGUE = frozenset(
    {"base", "common", "helper", "helpers", "manager", "misc", "util", "utilities", "utils"}
)
LINES_MAX = 600


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path) for path in FILES}


def level_of(module: str) -> int | None:
    """The level of a module; None if the table does not know it."""
    return next((level for pattern, level in LEVELS if fnmatchcase(module, pattern)), None)


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports, those for annotations too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            assert not node.level, "imports are absolute"
            # A name of a package may be a module of it.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def part_of(module: str) -> str | None:
    """The part that a module belongs to."""
    return next((part for part in PARTS if module == part or module.startswith(part + ".")), None)


def import_faults(module: str, text: str) -> list[str]:
    """What a module imports but must not."""
    level = level_of(module)
    if level is None:
        return [f"{module} has no level; give it one in the table of this test"]
    faults = []
    for imported in imports(ast.parse(text)):
        if imported.partition(".")[0] == "lvsha":
            other = level_of(imported)
            if other is not None and other > level:
                faults.append(f"{module} (level {level}) imports {imported} (level {other})")
            if part_of(module) and part_of(imported) not in {None, part_of(module)}:
                faults.append(f"{module} imports {imported}, of another part")
            if module.startswith("lvsha.drill") and part_of(imported):
                faults.append(f"{module} imports {imported}; a drill runs the real program")
        elif level <= CORE and imported.partition(".")[0] in UNCLEAN:
            faults.append(f"{module} (level {level}) imports {imported}")
    return faults


def asynchrony(text: str) -> bool:
    """Whether a module waits for anything."""
    waiting = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
    return any(isinstance(node, waiting) for node in ast.walk(ast.parse(text)))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert import_faults(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if (level_of(module_name(path)) or 0) <= CORE], ids=module_name
)
def test_cores_do_not_wait(path: Path) -> None:
    assert not asynchrony(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_modules_are_short_named_and_described(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_MAX
    assert ast.get_docstring(ast.parse(text))
    assert not VAGUE & set(module_name(path).split("."))


def test_every_pattern_of_the_table_fits_a_module() -> None:
    for pattern, _ in LEVELS:
        assert any(fnmatchcase(module, pattern) for module in MODULES), pattern


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("lvsha.datapath.director", "import time"),
        ("lvsha.datapath.director", "from trio.lowlevel import checkpoint"),
        ("lvsha.wire.arp", "import lvsha.datapath.director"),
        ("lvsha.model", "from lvsha import config"),
        ("lvsha.sync.courier", "from lvsha.failover import election"),
        ("lvsha.failover.speaker", "from lvsha.datapath.reasons import Reason"),
        ("lvsha.failover.speaker", "from lvsha.node import Node"),
        ("lvsha.drill.rehearsal", "from lvsha.failover.election import Election"),
        ("lvsha.nowhere", ""),
    ],
)
def test_a_forbidden_import_is_found(module: str, text: str) -> None:
    assert len(import_faults(module, text)) == 1


def test_asynchrony_is_found() -> None:
    assert asynchrony("async def wait() -> None: ...")
    assert not asynchrony("def decide() -> None: ...")
