import hmac
import random
import re
from collections.abc import Iterator
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from lvsha.errors import SealError, SealFault, SyncError
from lvsha.sync import seal as seal_module
from lvsha.sync.datagrams import sync_id_of
from lvsha.sync.messages import DATAGRAM_BYTES_MAX
from lvsha.sync.seal import (
    COUNTER_MAX,
    SEAL_BYTES,
    SESSIONS_MAX,
    WINDOW,
    Seal,
    key_id,
    sync_id_of_sealed,
)

PROTOCOL = Path(__file__).resolve().parents[2] / "docs" / "sync-protocol.md"

FIRST, SECOND, THIRD = (sha256(name).digest() for name in (b"first", b"second", b"third"))
PLAIN = b"\x01\x07\xff\xff" + bytes(range(60))

# The example of docs/sync-protocol.md.
KEY = bytes(range(32))
SESSION = 0x0123456789ABCDEF
SESSION_KEY = "1ef7b4661c0ce1f1b1ed3b4414d8d59479f06dc10858648c8cfe5ace134ecd91"
EXAMPLE = "0101ffff9604a4656173740501 0209"
SEALED_EXAMPLE = (
    "0201ffff 37 0123456789abcdef 000000000001 "
    "27962aee970952d3bfe342ab f4e8af3ea666044cb953c1db46f7f989"
)


def refusal(receiver: Seal, datagram: bytes) -> SealFault:
    """What a datagram is refused as."""
    with pytest.raises(SealError) as caught:
        receiver.open(datagram)
    return caught.value.kind


def two_nodes(*keys: bytes) -> tuple[Seal, Seal]:
    return Seal(keys or (FIRST,), 1), Seal(keys or (FIRST,), 2)


# The bytes


def test_the_bytes_of_a_sealed_datagram_are_those_of_the_description() -> None:
    plain, sealed = bytes.fromhex(EXAMPLE), bytes.fromhex(SEALED_EXAMPLE)
    assert Seal([KEY], SESSION).seal(plain) == sealed
    assert Seal([KEY], 1).open(sealed) == plain


def test_the_description_shows_these_bytes() -> None:
    text = PROTOCOL.read_text(encoding="utf-8").partition("## Sealed datagrams\n")[2]
    shown = "".join(re.findall(r"^    ((?:[0-9a-f]{2} ?)+)", text, re.MULTILINE))
    assert bytes.fromhex(shown) == bytes.fromhex(SESSION_KEY + EXAMPLE + SEALED_EXAMPLE)
    assert "0x0123456789abcdef" in text


def test_the_description_is_enough_to_open_a_datagram() -> None:
    sealed = bytes.fromhex(SEALED_EXAMPLE)
    session = sealed[5:13]
    # RFC 5869, sections 2.2 and 2.3, for one block.
    extracted = hmac.digest(session, KEY, "sha256")
    key = hmac.digest(extracted, b"lvsha sync session\x01", "sha256")
    assert key.hex() == SESSION_KEY
    text = ChaCha20Poly1305(key).decrypt(bytes(6) + sealed[13:19], sealed[19:], sealed[:19])
    assert text[:1] + sealed[1:4] + text[1:] == bytes.fromhex(EXAMPLE)
    assert sealed[4] == sha256(b"lvsha sync key id" + KEY).digest()[0] == key_id(KEY)


def test_a_seal_takes_as_many_bytes_as_it_says() -> None:
    sender, receiver = two_nodes()
    for length in (5, 64, 1400, DATAGRAM_BYTES_MAX - SEAL_BYTES):
        plain = (PLAIN * 1100)[:length]
        sealed = sender.seal(plain)
        assert len(sealed) == length + SEAL_BYTES
        assert receiver.open(sealed) == plain


def test_the_sync_id_is_readable_and_the_rest_is_not() -> None:
    sender, _ = two_nodes()
    sealed = sender.seal(PLAIN)
    assert sync_id_of_sealed(sealed) == sync_id_of(PLAIN) == 7
    assert not any(PLAIN[at : at + 4] in sealed for at in range(4, len(PLAIN) - 4))


def test_the_version_of_the_plain_datagram_comes_back() -> None:
    sender, receiver = two_nodes()
    assert receiver.open(sender.seal(b"\x09" + PLAIN[1:])) == b"\x09" + PLAIN[1:]


def test_a_sealed_datagram_has_a_version_of_its_own() -> None:
    sender, _ = two_nodes()
    with pytest.raises(SyncError, match="has no key"):
        sync_id_of(sender.seal(PLAIN))


# What is not authentic


def test_a_datagram_with_any_byte_changed_is_refused() -> None:
    sender, receiver = two_nodes()
    sealed = sender.seal(PLAIN)
    for position in range(len(sealed)):
        for change in (0x01, 0x03, 0x80, 0xFF):
            changed = bytearray(sealed)
            changed[position] ^= change
            refusal(receiver, bytes(changed))
    assert receiver.sessions == 0
    assert receiver.open(sealed) == PLAIN


def test_a_datagram_with_any_byte_changed_is_refused_in_a_known_session() -> None:
    sender, receiver = two_nodes()
    receiver.open(sender.seal(PLAIN))
    sealed = sender.seal(PLAIN)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 0x01
        refusal(receiver, bytes(changed))
    assert receiver.sessions == 1
    assert receiver.open(sealed) == PLAIN


def test_a_datagram_cut_short_or_with_a_tail_is_refused() -> None:
    sender, receiver = two_nodes()
    sealed = sender.seal(PLAIN)
    for length in range(len(sealed)):
        kind = "forged" if length > 4 + SEAL_BYTES else "malformed"
        assert refusal(receiver, sealed[:length]) == kind
    assert refusal(receiver, sealed + b"\x00") == "forged"
    assert refusal(receiver, bytes(DATAGRAM_BYTES_MAX + 1)) == "malformed"
    assert receiver.open(sealed) == PLAIN


def test_a_plain_datagram_is_refused() -> None:
    _, receiver = two_nodes()
    assert refusal(receiver, PLAIN) == "unsealed"


def test_what_is_of_another_protocol_or_version_is_refused() -> None:
    sender, receiver = two_nodes()
    sealed = sender.seal(PLAIN)
    assert refusal(receiver, b"\x00\x01\x00\x24" + bytes(32)) == "malformed"
    assert refusal(receiver, b"\x03" + sealed[1:]) == "malformed"
    for wrong in (b"", PLAIN, sealed[:36], b"\x03" + sealed[1:]):
        with pytest.raises(SealError):
            sync_id_of_sealed(wrong)


def test_a_datagram_under_an_unknown_key_is_refused() -> None:
    assert key_id(FIRST) != key_id(SECOND)
    sender, receiver = Seal([SECOND], 1), Seal([FIRST], 2)
    assert refusal(receiver, sender.seal(PLAIN)) == "unknown_key"


def test_a_datagram_of_ones_own_is_refused() -> None:
    sender, _ = two_nodes()
    assert refusal(sender, sender.seal(PLAIN)) == "own"


def test_forgeries_leave_nothing_behind() -> None:
    sender, receiver = two_nodes()
    sealed = sender.seal(PLAIN)
    for session in range(3, 300):
        forged = sealed[:5] + session.to_bytes(8) + sealed[13:]
        assert refusal(receiver, forged) == "forged"
    assert receiver.sessions == 0
    receiver.open(sealed)
    # A number far ahead must not move the window unless it is authentic.
    far = sealed[:13] + COUNTER_MAX.to_bytes(6) + sealed[19:]
    assert refusal(receiver, far) == "forged"
    assert receiver.open(sender.seal(PLAIN)) == PLAIN


def test_the_text_of_a_refusal_holds_nothing_of_the_datagram() -> None:
    sender, receiver = two_nodes()
    dice = random.Random(1)
    texts = set()
    for _ in range(300):
        datagram = bytearray(sender.seal(dice.randbytes(2) + b"\xff\xff" + dice.randbytes(20)))
        for _ in range(dice.randint(1, 3)):
            datagram[dice.randrange(20)] = dice.randrange(256)
        with pytest.raises(SealError) as caught:
            receiver.open(bytes(datagram))
        texts.add((caught.value.kind, str(caught.value)))
    assert len(texts) <= 8


# Once only


def test_a_datagram_is_accepted_once() -> None:
    sender, receiver = two_nodes()
    sealed = [sender.seal(PLAIN) for _ in range(5)]
    for datagram in sealed:
        assert receiver.open(datagram) == PLAIN
    for datagram in sealed:
        assert refusal(receiver, datagram) == "replayed"


def test_datagrams_in_any_order_are_each_accepted_once() -> None:
    sender, receiver = two_nodes()
    sealed = [sender.seal(PLAIN) for _ in range(WINDOW)] * 3
    random.Random(7).shuffle(sealed)
    accepted: set[bytes] = set()
    for datagram in sealed:
        if datagram in accepted:
            assert refusal(receiver, datagram) == "replayed"
        else:
            assert receiver.open(datagram) == PLAIN
            accepted.add(datagram)
    assert len(accepted) == WINDOW


def test_a_late_datagram_is_accepted_within_the_window_and_not_beyond() -> None:
    sender, receiver = two_nodes()
    sealed = [sender.seal(PLAIN) for _ in range(WINDOW + 1)]
    receiver.open(sealed[-1])
    assert refusal(receiver, sealed[0]) == "replayed"
    assert receiver.open(sealed[1]) == PLAIN
    assert refusal(receiver, sealed[1]) == "replayed"


@pytest.mark.parametrize("skipped", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_what_came_stays_known_when_numbers_are_skipped(skipped: int) -> None:
    sender, receiver = two_nodes()
    early = [sender.seal(PLAIN) for _ in range(3)]
    for datagram in early[::2]:
        receiver.open(datagram)
    for _ in range(skipped - 1):
        sender.seal(PLAIN)
    receiver.open(sender.seal(PLAIN))
    for datagram in early[::2]:
        assert refusal(receiver, datagram) == "replayed"
    # The one in the middle never came; it is number 2 of 3, and the last is 3 + skipped.
    if 1 + skipped < WINDOW:
        assert receiver.open(early[1]) == PLAIN
    else:
        assert refusal(receiver, early[1]) == "replayed"


@pytest.mark.parametrize("skipped", [WINDOW, 2 * WINDOW])
def test_what_was_skipped_may_come_late(skipped: int) -> None:
    sender, receiver = two_nodes()
    sealed = [sender.seal(PLAIN) for _ in range(skipped + 1)]
    receiver.open(sealed[0])
    receiver.open(sealed[-1])
    for datagram in sealed[-WINDOW:-1]:
        assert receiver.open(datagram) == PLAIN


def test_a_process_that_starts_again_is_heard_and_seals_otherwise() -> None:
    sender, receiver = two_nodes()
    again = Seal([FIRST], 3)
    before, after = sender.seal(PLAIN), again.seal(PLAIN)
    assert before[19:] != after[19:]
    assert receiver.open(before) == receiver.open(after) == PLAIN
    assert receiver.sessions == 2


def test_no_more_sessions_are_remembered_than_the_limit() -> None:
    senders = [Seal([FIRST], session) for session in range(1, SESSIONS_MAX + 2)]
    receiver = Seal([FIRST], 0)
    first = [sender.seal(PLAIN) for sender in senders]
    for datagram in first[:SESSIONS_MAX]:
        receiver.open(datagram)
    # The first is heard again, so that the second has been silent longest.
    receiver.open(senders[0].seal(PLAIN))
    receiver.open(first[SESSIONS_MAX])
    assert receiver.sessions == SESSIONS_MAX
    for datagram in (first[0], *first[2:]):
        assert refusal(receiver, datagram) == "replayed"
    assert receiver.open(first[1]) == PLAIN


def test_numbers_run_out_rather_than_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_module, "COUNTER_MAX", 3)
    sender, receiver = two_nodes()
    for _ in range(3):
        receiver.open(sender.seal(PLAIN))
    for _ in range(2):
        with pytest.raises(AssertionError, match="used up"):
            sender.seal(PLAIN)


def test_the_largest_number_is_the_last_that_has_room() -> None:
    assert len(COUNTER_MAX.to_bytes(6)) == 6
    with pytest.raises(OverflowError):
        (COUNTER_MAX + 1).to_bytes(6)


# Two keys


def test_the_first_key_seals_and_both_open() -> None:
    receiver = Seal([FIRST, SECOND], 9)
    for session, keys in enumerate(([FIRST], [SECOND], [SECOND, FIRST])):
        sealed = Seal(keys, session).seal(PLAIN)
        assert sealed[4] == key_id(keys[0])
        assert receiver.open(sealed) == PLAIN
    assert refusal(receiver, Seal([THIRD], 8).seal(PLAIN)) == "unknown_key"


def namesakes() -> Iterator[tuple[bytes, bytes]]:
    """Pairs of keys with the same id."""
    keys = [sha256(bytes((number,))).digest() for number in range(60)]
    return (pair for pair in combinations(keys, 2) if key_id(pair[0]) == key_id(pair[1]))


def test_two_keys_of_the_same_id_are_both_tried() -> None:
    one, other = next(namesakes())
    for keys in ([one, other], [other, one]):
        receiver = Seal(keys, 9)
        assert receiver.open(Seal([one], 1).seal(PLAIN)) == PLAIN
        assert receiver.open(Seal([other], 2).seal(PLAIN)) == PLAIN
    assert refusal(Seal([one], 9), Seal([other], 2).seal(PLAIN)) == "forged"


def test_a_key_that_was_dropped_opens_no_more() -> None:
    sender, receiver = two_nodes()
    receiver.open(sender.seal(PLAIN))
    receiver.change_keys([SECOND])
    assert refusal(receiver, sender.seal(PLAIN)) == "unknown_key"


def test_a_key_that_was_dropped_opens_no_more_by_its_namesake() -> None:
    one, other = next(namesakes())
    sender, receiver = Seal([one], 1), Seal([one, other], 2)
    receiver.open(sender.seal(PLAIN))
    receiver.change_keys([other])
    assert refusal(receiver, sender.seal(PLAIN)) == "forged"


def test_nothing_is_kept_of_a_key_that_was_dropped() -> None:
    sender, receiver = two_nodes(FIRST, SECOND)
    receiver.open(sender.seal(PLAIN))
    sender.change_keys([SECOND])
    receiver.open(sender.seal(PLAIN))
    receiver.change_keys([SECOND])
    assert [set(session.ciphers) for session in receiver._sessions.values()] == [{SECOND}]


def test_a_change_of_keys_brings_no_datagram_back() -> None:
    sender, receiver = two_nodes(FIRST, SECOND)
    sealed = [sender.seal(PLAIN)]
    sender.change_keys([SECOND, FIRST])
    sealed.append(sender.seal(PLAIN))
    for datagram in sealed:
        receiver.open(datagram)
    receiver.change_keys([THIRD])
    receiver.change_keys([SECOND, FIRST])
    for datagram in sealed:
        assert refusal(receiver, datagram) == "replayed"


def test_a_change_of_keys_never_repeats_a_number() -> None:
    sender, _ = two_nodes()
    heads = set()
    for keys in ([FIRST], [FIRST, SECOND], [SECOND, FIRST], [FIRST], [FIRST], [SECOND], [FIRST]):
        sender.change_keys(keys)
        for _ in range(3):
            heads.add(sender.seal(PLAIN)[5:19])
    assert len(heads) == 21


@pytest.mark.parametrize("seed", range(20))
def test_keys_change_in_mid_stream_and_no_datagram_is_refused(seed: int) -> None:
    """The three steps, on each node at its own time, over a link that loses and delays."""
    dice = random.Random(seed)
    steps = ([FIRST], [FIRST, SECOND], [SECOND, FIRST], [SECOND])
    nodes = two_nodes(FIRST)
    under_way: list[tuple[int, bytes]] = []
    lost = opened = 0

    def exchange(rounds: int) -> None:
        nonlocal lost, opened
        for _ in range(rounds):
            to = dice.randrange(2)
            under_way.append((to, nodes[1 - to].seal(PLAIN)))
            while under_way and dice.random() < 0.6:
                to, datagram = under_way.pop(dice.randrange(len(under_way)))
                if dice.random() < 0.2:
                    lost += 1
                else:
                    assert nodes[to].open(datagram) == PLAIN
                    opened += 1

    exchange(50)
    for keys in steps[1:]:
        for node in dice.sample(nodes, 2):
            node.change_keys(keys)
            exchange(50)
        # A step begins when all that was sealed before the last one has arrived.
        for to, datagram in under_way:
            assert nodes[to].open(datagram) == PLAIN
        under_way.clear()
    assert lost > 20
    assert opened > 200


# What the caller must not do


@pytest.mark.parametrize(
    "keys", [[], [FIRST, SECOND, THIRD], [FIRST, FIRST], [FIRST[:-1]], [FIRST + b"\x00"]]
)
def test_keys_that_cannot_be_are_our_own_fault(keys: list[bytes]) -> None:
    with pytest.raises(AssertionError):
        Seal(keys, 1)


def test_what_is_no_datagram_is_not_sealed() -> None:
    sender, _ = two_nodes()
    for wrong in (b"", PLAIN[:4], b"\x01\x07\x00\x40" + PLAIN[4:], PLAIN[:4] + bytes(65_500)):
        with pytest.raises(AssertionError):
            sender.seal(wrong)
