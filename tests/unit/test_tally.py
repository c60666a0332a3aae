"""Counts and sums of a sync id."""

from zlib import crc32

import pytest

from lvsha.model import BUCKETS, bucket_of, connection_key, template_key
from lvsha.tally import UNTOLD, Tally

SERVER, PORT = bytes((10, 1, 0, 11)), 8080


def key(client: int) -> bytes:
    return connection_key(6, bytes((198, 51, 100, client)), 40_000, bytes((192, 0, 2, 21)), 80)


def tell(tally: Tally, client: int, old: int, new: int, server: bytes = SERVER) -> None:
    tally.retell(key(client), server, PORT, old, new)


def test_the_sum_of_a_bucket_is_that_of_its_terms() -> None:
    tally = Tally(7)
    tell(tally, 1, UNTOLD, 1)
    term = crc32(key(1) + SERVER + b"\x1f\x90") + 1
    assert tally.sums[bucket_of(key(1))] == term * 3
    assert (tally.total, tally.told, tally.sync_id) == (term * 3, 1, 7)
    tell(tally, 1, 1, 0)
    assert (tally.total, tally.told) == (term, 1)
    tell(tally, 1, 0, UNTOLD)
    assert (tally.sums, tally.told) == ([0] * BUCKETS, 0)


def test_sums_are_the_same_in_any_order_and_after_detours() -> None:
    one, other = Tally(1), Tally(2)
    for client in (1, 2, 3):
        tell(one, client, UNTOLD, client)
    for client in (3, 9, 1, 2):
        tell(other, client, UNTOLD, 5)
    tell(other, 9, 5, UNTOLD)
    for client in (2, 1, 3):
        tell(other, client, 5, client)
    assert one.sums == other.sums
    assert one.told == other.told == 3


@pytest.mark.parametrize("change", ["state", "server", "port", "client", "missing", "template"])
def test_any_difference_shows_in_its_bucket(change: str) -> None:
    one, other = Tally(1), Tally(1)
    for client in range(1, 100):
        for tally in (one, other):
            tell(tally, client, UNTOLD, 1)
    match change:
        case "state":
            tell(other, 1, 1, 2)
        case "server" | "port":
            tell(other, 1, 1, UNTOLD)
            server = SERVER if change == "port" else bytes((10, 1, 0, 12))
            port = PORT + (change == "port")
            other.retell(key(1), server, port, UNTOLD, 1)
        case "client":
            tell(other, 1, 1, UNTOLD)
            tell(other, 101, UNTOLD, 1)
        case "missing":
            tell(other, 1, 1, UNTOLD)
        case _:
            other.retell(template_key(key(1)), SERVER, PORT, UNTOLD, 0)
    assert one.total != other.total
    changed = template_key(key(1)) if change == "template" else key(1)
    assert one.sums[bucket_of(changed)] != other.sums[bucket_of(changed)]


def test_sums_stay_within_64_bits_and_above_0() -> None:
    tally = Tally(1)
    for client in range(256):
        tally.retell(key(client), SERVER, PORT, UNTOLD, 2**62)
    assert all(0 <= each < 2**64 for each in tally.sums)
    for client in range(256):
        tally.retell(key(client), SERVER, PORT, 2**62, UNTOLD)
    assert (tally.total, tally.told) == (0, 0)
