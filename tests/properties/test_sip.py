"""The Call-ID: nothing raises, and a reader that goes byte by byte finds the same."""

import string

from hypothesis import given
from hypothesis import strategies as st

from lvsha.datapath.sip import CALL_ID_MAX, call_id

WORD = (string.ascii_letters + string.digits + "-.!%*_+`'~()<>:\\\"/[]?{}").encode()
PIECES = (
    b"Call-ID", b"call-id", b"i", b"I", b"id", b":", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n ",
    b"a", b"a@b", b"@", b"7", b"=", b"x" * 255, b"x" * 256, b"Via: y", b"\xe9", b"\x00",
    b"\r\nCall-ID: ", b"\r\ni:", b"\r\ni",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join) | st.binary(max_size=60)


def behind_blanks(data: bytes, at: int) -> int:
    """Where blanks and folds from ``at`` on end."""
    while at < len(data):
        end = at + 2 if data[at : at + 2] == b"\r\n" else at + 1
        fold = data[at : at + 1] in {b"\r", b"\n"} and data[end : end + 1] in {b" ", b"\t"}
        if not fold and data[at : at + 1] not in {b" ", b"\t"}:
            break
        at = end
    return at


def behind_word(data: bytes, at: int) -> int:
    """Where the word that begins at ``at`` ends."""
    while at < len(data) and data[at] in WORD:
        at += 1
    return at


def naive(data: bytes) -> bytes | None:
    """The Call-ID, found slowly."""
    for at in range(1, len(data)):
        if data[at - 1 : at] not in {b"\r", b"\n"}:
            continue
        if data[at : at + 7].lower() == b"call-id":
            end = at + 7
        elif data[at : at + 1].lower() == b"i" and not data[at + 1 : at + 2].isalpha():
            end = at + 1
        else:
            continue
        end = behind_blanks(data, end)
        if data[end : end + 1] != b":":
            continue
        first = behind_blanks(data, end + 1)
        end = behind_word(data, first)
        if end > first and data[end : end + 1] == b"@" and behind_word(data, end + 1) > end + 1:
            end = behind_word(data, end + 1)
        whole = data[end : end + 1] in {b"\r", b"\n"}
        return data[first:end] if whole and 0 < end - first <= CALL_ID_MAX else None
    return None


@given(texts)
def test_a_slow_reader_finds_the_same(payload: bytes) -> None:
    assert call_id(payload) == naive(payload)


@given(
    st.text(WORD.decode(), min_size=1, max_size=120),
    st.none() | st.text(WORD.decode(), min_size=1, max_size=120),
    st.sampled_from([b"Call-ID: ", b"call-id:", b"i: ", b"i :\r\n "]),
    st.sampled_from([b"\r\n", b"\n", b"\r"]),
)
def test_every_call_id_of_the_grammar_is_found(
    word: str, host: str | None, name: bytes, end: bytes
) -> None:
    value = (word if host is None else f"{word}@{host}").encode()
    lines = [
        b"INVITE sip:bob@example.test SIP/2.0",
        b"Via: y",
        name + value,
        b"CSeq: 1 INVITE",
        b"",
    ]
    assert call_id(end.join(lines)) == value
