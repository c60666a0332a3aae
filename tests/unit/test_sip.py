import pytest

from lvsha.datapath.sip import CALL_ID_MAX, call_id

HOSTILE_BYTES = 0x10000
INVITE = (
    b"INVITE sip:bob@example.test SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP host\r\n"
    b"Call-ID: call-0@example.test\r\n"
    b"CSeq: 0 INVITE\r\n"
    b"Content-Length: 0\r\n"
    b"\r\n"
)


def message(header: bytes) -> bytes:
    return b"OPTIONS sip:bob@example.test SIP/2.0\r\n" + header + b"\r\nCSeq: 1 OPTIONS\r\n\r\n"


def test_a_request_has_its_call_id() -> None:
    assert call_id(INVITE) == b"call-0@example.test"


def test_a_response_has_its_call_id() -> None:
    assert call_id(b"SIP/2.0 200 OK\r\nCall-ID: a84b4c76e66710\r\n\r\n") == b"a84b4c76e66710"


@pytest.mark.parametrize(
    "header",
    [
        b"Call-ID: 7@x",
        b"CALL-ID: 7@x",
        b"call-id:7@x",
        b"Call-ID : 7@x",
        b"Call-ID\t :\t 7@x",
        b"i: 7@x",
        b"I:7@x",
        b"i : 7@x",
        b"Call-ID:\r\n 7@x",
        b"Call-ID:\r\n\t\r\n  7@x",
        b"Call-ID: \n 7@x",
        b"Call-ID:\r 7@x",
        b"Call-ID\r\n : 7@x",
        b"i\r\n\t:\r\n 7@x",
        b"Call-ID: 7@x\r\n continued",
        b"Call-IDs: no\r\nCall-ID: 7@x",
        b"In-Reply-To: 6@x\r\ni: 7@x",
        b"i-mode: yes\r\nCall-ID: 7@x",
        b"Call-ID: 7@x\r\nCall-ID: 8@x",
        b"Call-ID: 7@x\r\ni: 8@x",
        b"Subject: a\r\n Call-ID: 6@x\r\nCall-ID: 7@x",
    ],
)
def test_the_header_may_be_written_in_many_ways(header: bytes) -> None:
    assert call_id(message(header)) == b"7@x"


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
def test_lines_may_end_in_either_character_or_both(end: bytes) -> None:
    assert call_id(b"BYE x SIP/2.0" + end + b"i: 7@x" + end) == b"7@x"


def test_every_character_of_a_word_counts() -> None:
    word = b"azAZ09-.!%*_+`'~()<>:\\\"/[]?{}"
    assert call_id(message(b"i: " + word)) == word
    assert call_id(message(b"i: " + word + b"@" + word)) == word + b"@" + word


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Call-ID:",
        b"Call-ID: ",
        b"Call-ID:\r\nSubject: 7@x",
        b"Call-ID 7@x",
        b"Call-ID: @x",
        b"Call-ID: 7@",
        b"Call-ID: 7@x@y",
        b"Call-ID: 7@x ",
        b"Call-ID: 7@x;tag=1",
        b"Call-ID: 7,8",
        b"Call-ID: \xc3\xa9@x",
        b"Call-ID: 7\x00",
        b"Call-IDs: 7@x",
        b"id: 7@x",
        b"i= 7@x",
        b" Call-ID: 7@x",
        b"\tCall-ID: 7@x",
        b"X-Call-ID: 7@x",
        b"Call-ID: 7=\r\nCall-ID: 7@x",
    ],
)
def test_what_is_not_quite_a_call_id_is_none(header: bytes) -> None:
    assert call_id(message(header)) is None


def test_the_first_line_is_never_a_header() -> None:
    assert call_id(b"Call-ID: 7@x\r\nVia: y\r\n") is None
    assert call_id(b"i: 7@x\r\n") is None
    assert call_id(b"\r\ni: 7@x\r\n") == b"7@x"


def test_a_value_at_the_very_end_is_cut_short() -> None:
    assert call_id(b"BYE x SIP/2.0\r\ni: 7@x") is None
    assert call_id(b"BYE x SIP/2.0\r\ni: 7@x\r") == b"7@x"


def test_a_call_id_has_1_to_255_bytes() -> None:
    assert call_id(message(b"i: 7")) == b"7"
    longest = b"a" * (CALL_ID_MAX - 2) + b"@b"
    assert call_id(message(b"i: " + longest)) == longest
    assert call_id(message(b"i: " + longest + b"b")) is None
    assert len(longest) == 255


@pytest.mark.parametrize("payload", [b"", b"not SIP", b"\r\n\r\n", b"\r", b"i", b"\ni", b"\ni:"])
def test_what_is_no_message_has_none(payload: bytes) -> None:
    assert call_id(payload) is None


@pytest.mark.parametrize(
    "unit",
    [
        b"i ",
        b"\ni",
        b"\ni ",
        b"\ni\r\n ",
        b"\r",
        b"\n ",
        b"\r\n ",
        b" ",
        b"\t",
        b":",
        b"a",
        b"a@",
        b"\nCall-ID",
        b"\nCall-ID ",
        b"\x00",
    ],
)
def test_a_hostile_payload_costs_no_more_than_its_length(unit: bytes) -> None:
    for start in (b"", b"\r\ni", b"\r\ni:", b"\r\ni:=", b"\r\ni:a@"):
        assert call_id(start + unit * (HOSTILE_BYTES // len(unit))) is None
