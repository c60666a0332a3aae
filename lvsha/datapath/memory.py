"""How much memory of this machine is free, for the director's defence.

The kernel's director counts what ``si_meminfo`` calls free and buffers, in pages; so does
this, by way of ``/proc/meminfo``. The page cache does not count: what it could give back
is not free yet.
"""

import os
from pathlib import Path
from typing import Final

MEMINFO: Final = Path("/proc/meminfo")
_COUNTED: Final = frozenset({"MemFree", "Buffers"})
_KIB: Final = 1024


def free_pages(text: str, page_bytes: int) -> int:
    """Free and buffer memory in pages, from the text of ``/proc/meminfo``."""
    total = 0
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in _COUNTED:
            total += int(rest.split()[0])
    return total * _KIB // page_bytes


def available_pages() -> int:
    """What is free now.

    Raises:
        OSError: the machine does not say.
    """
    return free_pages(MEMINFO.read_text(encoding="ascii"), os.sysconf("SC_PAGE_SIZE"))
