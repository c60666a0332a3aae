from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.errors import SealError
from lvsha.sync.seal import SEAL_BYTES, WINDOW, Seal

KEYS = [sha256(bytes((number,))).digest() for number in range(3)]
PLAIN = st.builds(
    lambda version, sync_id, body: bytes((version, sync_id)) + b"\xff\xff" + body,
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(min_size=1, max_size=100),
)


@given(st.lists(PLAIN, min_size=1, max_size=5), st.integers(0, 2**64 - 2))
def test_what_is_sealed_opens_again(plain: list[bytes], session: int) -> None:
    sender, receiver = Seal(KEYS[:1], session), Seal(KEYS[:2], session + 1)
    for datagram in plain:
        sealed = sender.seal(datagram)
        assert len(sealed) == len(datagram) + SEAL_BYTES
        assert receiver.open(sealed) == datagram


@settings(max_examples=300)
@given(PLAIN, st.data())
def test_a_damaged_datagram_is_refused(plain: bytes, data: st.DataObject) -> None:
    receiver = Seal(KEYS[:2], 2)
    sealed = Seal(KEYS[:1], 1).seal(plain)
    damaged = bytearray(sealed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        match data.draw(st.sampled_from(("change", "insert", "remove"))):
            case "change":
                damaged[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case _:
                del damaged[at : at + 9]
    if bytes(damaged) == sealed:
        return
    with pytest.raises(SealError):
        receiver.open(bytes(damaged))
    assert receiver.sessions == 0


@given(st.binary(max_size=200), st.sampled_from((b"", b"\x02\x07\xff\xff", b"\x01\x07\xff\xff")))
def test_noise_is_refused(noise: bytes, head: bytes) -> None:
    with pytest.raises(SealError):
        Seal(KEYS[:2], 2).open(head + noise)


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=60))
def test_the_window_is_that_of_a_set_of_all_numbers(arrivals: list[int]) -> None:
    sender, receiver = Seal(KEYS[:1], 1), Seal(KEYS[:1], 2)
    sealed = {}
    for number in range(1, max(arrivals, default=0) + 1):
        datagram = sender.seal(b"\x01\x07\xff\xff\x90") if number in arrivals else b""
        if datagram:
            sealed[number] = datagram
        else:
            # As if it were sealed and lost.
            sender._counter += 1
    seen: set[int] = set()
    for number in arrivals:
        is_new = number not in seen and number > max(seen, default=number) - WINDOW
        if is_new:
            receiver.open(sealed[number])
            seen.add(number)
        else:
            with pytest.raises(SealError) as caught:
                receiver.open(sealed[number])
            assert caught.value.kind == "replayed"
