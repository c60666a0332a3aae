"""Carry out the caller's requests inside the guest.

This program runs in the guest, with the host's Python and nothing but its standard library.
Each line that it reads is the name of a file in /run/requests, which holds one request as
JSON; it answers each with one line of JSON. The requests themselves do not pass the serial
line because that stalls on long lines.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

REQUESTS = Path("/run/requests")
_SHELL = frozenset("\n;<>|&")


def answer(request: dict[str, list[str]]) -> list[tuple[int, str, str]]:
    """Run each command of a request; a result is its exit status, output and errors."""
    results = []
    for command in request["run"]:
        # A shell costs as much again as what it runs, so only what needs one gets one.
        words = ["/bin/sh", "-ec", command] if set(command) & _SHELL else shlex.split(command)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        results.append((done.returncode, done.stdout, done.stderr))
    return results


def main() -> None:
    """Answer until the line is closed."""
    print(json.dumps({"release": os.uname().release}), flush=True)
    for line in sys.stdin:
        request = json.loads((REQUESTS / line.strip()).read_text(encoding="utf-8"))
        print(json.dumps(answer(request)), flush=True)


if __name__ == "__main__":
    main()
