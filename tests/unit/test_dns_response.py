"""Responses of DNS: what answers a question, and what reading one costs at most."""

import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.rrset
import pytest

from lvsha.errors import WireError
from lvsha.wire.dns_response import (
    ANSWERS_MAX,
    NAME_BYTES_MAX,
    STEPS_MAX,
    Response,
    canonical,
)

QUERY = dns.message.make_query("www.Example.org", "HTTPS", id=7).to_wire()
HEADER = struct.Struct("!HHHHHH")
RECORD = struct.Struct("!HHIH")
A, NS, MX = 1, 2, 15
FLAGS = 0x8180


def message(
    *records: bytes, flags: int = FLAGS, questions: int = 1, answers: int | None = None
) -> bytes:
    count = len(records) if answers is None else answers
    return HEADER.pack(7, flags, questions, count, 0, 0) + QUERY[12:] + b"".join(records)


def record(kind: int, data: bytes, name: bytes = b"\0", *, its_class: int = 1) -> bytes:
    return name + RECORD.pack(kind, its_class, 60, len(data)) + data


def pointer(to: int) -> bytes:
    return struct.pack("!H", 0xC000 | to)


def records(kind: int, data: bytes) -> list[bytes]:
    response = Response.parse(data, QUERY)
    assert response is not None
    return response.records(kind)


def test_a_response_has_a_code_and_says_whether_there_is_more() -> None:
    response = Response.parse(message(flags=FLAGS | 0x0200 | 3), QUERY)
    assert response is not None
    assert (response.rcode, response.is_truncated, response.answers) == (3, True, 0)


def test_a_name_may_come_back_in_other_letters_but_not_another_type() -> None:
    answer = message()
    assert Response.parse(answer.replace(b"Example", b"eXAMPLE"), QUERY) is not None
    # HTTPS is type 65, which is the letter A; type 97 is the letter a.
    assert QUERY[-4:] == b"\0A\0\1"
    assert Response.parse(answer[:-4] + b"\0a\0\1", QUERY) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message()[:-1],
        message()[:12],
        QUERY,
        b"\0\x08" + message()[2:],
        message(flags=FLAGS | 0x2800),
        message(questions=0),
        message(questions=2),
        message().replace(b"www", b"ftp"),
        message()[:12] + message()[13:],
    ],
    ids=[
        "nothing", "a cut question", "no question", "the query", "another number",
        "another kind", "a question that is not counted", "two questions", "another name",
        "a shifted name",
    ],
)  # fmt: skip
def test_what_is_no_answer_to_the_question_is_none(data: bytes) -> None:
    assert Response.parse(data, QUERY) is None


@pytest.mark.parametrize(("code", "may"), [(0, False), (1, True), (2, True), (3, False), (5, True)])
def test_who_cannot_read_the_question_may_leave_it_out(code: int, may: bool) -> None:
    data = HEADER.pack(7, FLAGS | code, 0, 0, 0, 0)
    assert (Response.parse(data, QUERY) is not None) is may


def test_records_of_the_type_are_read_and_others_passed_over() -> None:
    data = message(
        record(MX, b"\0\5" + pointer(12), pointer(12)),
        record(A, b"\xc0\0\2\1", b"\1a" + pointer(16)),
        record(A, b"\xc0\0\2\2", its_class=3),
        record(A, b"\xc0\0\2\3"),
    )
    assert records(A, data) == [b"\xc0\0\2\1", b"\xc0\0\2\3"]
    assert records(MX, data) == [b"\0\5\3www\7example\3org\0"]
    assert records(NS, data) == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("NS", "Ns1.www.example.org."),
        ("CNAME", "www.example.org."),
        ("SOA", "ns.example.org. Host.www.example.org. 1 2 3 4 5"),
        ("MX", "10 mail.www.example.org."),
        ("RP", "a.example.org. b.example.org."),
        ("SRV", "1 2 53 ns.example.org."),
        ("PX", "1 a.example.org. b.example.org."),
        ("DNAME", "example.org."),
        ("TXT", '"Hello" "you"'),
        ("AAAA", "2001:db8::1"),
        ("SVCB", "1 Foo.example.org. alpn=h2"),
    ],
)
def test_data_is_the_same_however_its_names_are_written(kind: str, text: str) -> None:
    query = dns.message.make_query("www.example.org", kind)
    answer = dns.message.make_response(query)
    answer.answer.append(dns.rrset.from_text("www.example.org.", 60, "IN", kind, text))
    response = Response.parse(answer.to_wire(), query.to_wire())
    assert response is not None
    number = dns.rdatatype.from_text(kind)
    plain = dns.rdata.from_text("IN", kind, text).to_wire()
    assert plain is not None
    assert response.records(number) == [canonical(number, plain)]


def test_a_message_that_is_cut_anywhere_is_malformed() -> None:
    whole = message(record(MX, b"\0\5\1a" + pointer(12)), record(A, b"\1\2\3\4", pointer(12)))
    for length in range(len(QUERY), len(whole)):
        with pytest.raises(WireError):
            records(A, whole[:length])
    assert records(A, whole) == [b"\1\2\3\4"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (pointer(len(QUERY) + 11), "points forward"),
        (pointer(16_000), "points forward"),
        (b"\1a" + pointer(len(QUERY) + 11), "points forward"),
        (b"\x80", "a type that is not in use"),
        (b"\1a", "cut short"),
        (b"\xc0", "cut short"),
        ((b"\x3f" + b"x" * 63) * 4 + b"\0", "too long"),
    ],
)
def test_a_name_that_is_none_is_malformed(data: bytes, problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        records(NS, message(record(NS, data)))


def test_data_that_end_within_a_name_are_malformed() -> None:
    short = b"\0" + RECORD.pack(NS, 1, 60, 2) + b"\3www\0"
    with pytest.raises(WireError, match="shorter than what it holds"):
        records(NS, message(short, answers=1))


def test_a_header_that_claims_more_than_there_is_is_malformed() -> None:
    with pytest.raises(WireError, match="cut short"):
        records(A, message(answers=1))
    with pytest.raises(WireError, match=f"more than {ANSWERS_MAX} records"):
        records(A, message(answers=65_535))


def test_names_that_all_point_at_a_long_one_are_followed_for_a_while() -> None:
    """The most costly message there is: a short pointer is a name of 126 labels."""
    long = b"\1a" * ((NAME_BYTES_MAX - 1) // 2) + b"\0"
    where = pointer(len(QUERY) + 11)
    data = message(record(NS, long), *[record(NS, where, where)] * (ANSWERS_MAX - 1))
    with pytest.raises(WireError, match=f"more than {STEPS_MAX} labels"):
        records(NS, data)
    # Where they are not what was asked for nobody follows them.
    assert records(A, data) == []


def test_an_honest_message_as_long_as_may_be_is_read() -> None:
    data = message(*[record(MX, b"\0\5\4mail" + pointer(12), pointer(12))] * ANSWERS_MAX)
    assert len(records(MX, data)) == ANSWERS_MAX
