"""Metrics of a running director, read as a collector and as an operator read them."""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.netns.mutual_pair import PAIR, ROOT, World, wait_for_states
from tests.yard import within

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs the program nft"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip"),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, f"{PAIR}\n[metrics]\nport = 9999\n")
    try:
        made.build()
        yield made
    finally:
        made.end()


def samples(text: str) -> dict[tuple[str, str], float]:
    """The samples that have a virtual router, by their names and it."""
    return {
        (sample.name, "/".join(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "router" in sample.labels
    }


def test_a_collector_and_an_operator_read_the_same(world: World, tmp_path: Path) -> None:
    world.start("east")
    wait_for_states(world, "east", {"one": "MASTER", "two": "MASTER"})

    def scrape() -> str:
        with urllib.request.urlopen("http://127.0.0.1:9999/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    before = samples(within(world.namespace("east"), scrape))
    printed = samples(
        subprocess.run(
            [
                *("ip", "netns", "exec", world.namespace("east")),
                *(sys.executable, "-m", "lvsha", "metrics"),
            ],
            cwd=ROOT,
            env={**os.environ, "LVSHA_RUNTIME_DIR": str(tmp_path / "run-east")},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    )
    after = samples(within(world.namespace("east"), scrape))
    # A counter appears when it first counts, which may be between two looks.
    assert before.keys() <= printed.keys() <= after.keys()
    for found in (before, printed):
        assert found["lvsha_router_state", "MASTER/one"] == 1
        assert found["lvsha_router_state", "BACKUP/one"] == 0
        assert found["lvsha_router_priority", "two"] == 100
        assert found["lvsha_router_events_total", "advertisements_sent/one"] > 0
