"""Run one check of a file in a child process with a network namespace of its own.

The threads of the test process must stay where they are.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def in_namespace(file: str, check: str) -> None:
    """Run a file as a program in a namespace, with the name of a check as its argument."""
    prefix = ["unshare", "--net"]
    if os.geteuid() != 0:
        prefix = ["unshare", "--user", "--map-root-user", "--net"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no network namespaces here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*prefix, sys.executable, file, check],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout


def run(*words: str) -> str:
    """What a program prints in this process's namespace."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout


def ip(arguments: str) -> str:
    """What iproute2 answers in this process's namespace."""
    return run("ip", *arguments.split())
