from lvsha.datapath.memory import available_pages, free_pages

TEXT = """MemTotal:        8000000 kB
MemFree:            4000 kB
MemAvailable:    5000000 kB
Buffers:              96 kB
Cached:          1000000 kB
HugePages_Free:        0
"""


def test_free_and_buffer_memory_count_in_pages() -> None:
    assert free_pages(TEXT, 4096) == 1024
    assert free_pages("", 4096) == 0


def test_this_machine_says_how_much_it_has() -> None:
    assert available_pages() > 0
