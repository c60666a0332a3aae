import pytest

from lvsha.datapath import sctp_states
from lvsha.datapath.sctp_states import SctpEvent, SctpState, event_of

HEADER = bytes(12)


def chunk(kind: int, length: int = 4, body: bytes = b"") -> bytes:
    return bytes((kind, 0)) + length.to_bytes(2) + body


def event(chunks: bytes) -> int | None:
    return event_of(HEADER + chunks, 0, len(HEADER + chunks))


def test_every_event_has_a_next_state_for_every_state() -> None:
    for table in (sctp_states.INPUT, sctp_states.OUTPUT, sctp_states.INPUT_ONLY):
        assert len(table) == len(SctpEvent)
        assert all(len(row) == len(SctpState) for row in table)
        assert all(state < len(SctpState) for row in table for state in row)


def test_there_is_a_name_a_timeout_and_a_mark_for_every_state() -> None:
    for column in (
        sctp_states.NAMES,
        sctp_states.TIMEOUTS,
        sctp_states.ACTIVE,
        sctp_states.TOLD,
        sctp_states.REUSABLE,
    ):
        assert len(column) == len(SctpState)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (0, SctpEvent.DATA),
        (1, SctpEvent.INIT),
        (2, SctpEvent.INIT_ACK),
        (3, SctpEvent.DATA),
        (4, SctpEvent.DATA),
        (5, SctpEvent.DATA),
        (6, SctpEvent.ABORT),
        (7, SctpEvent.SHUTDOWN),
        (8, SctpEvent.SHUTDOWN_ACK),
        (9, SctpEvent.ERROR),
        (10, SctpEvent.COOKIE_ECHO),
        (11, SctpEvent.COOKIE_ACK),
        (12, SctpEvent.DATA),
        (13, SctpEvent.DATA),
        (14, SctpEvent.SHUTDOWN_COMPLETE),
        (15, SctpEvent.DATA),
        (0x40, SctpEvent.DATA),
        (255, SctpEvent.DATA),
    ],
)
def test_the_first_chunk_is_the_event(kind: int, expected: SctpEvent) -> None:
    assert event(chunk(kind)) == expected
    assert event(chunk(kind) + chunk(7)) == expected


@pytest.mark.parametrize("cookie", [10, 11])
@pytest.mark.parametrize("length", [4, 5, 7, 8, 100])
def test_an_abort_behind_a_cookie_decides(cookie: int, length: int) -> None:
    padded = chunk(cookie, length, bytes(length + 3 & ~3)[4:])
    assert event(padded + chunk(6)) == SctpEvent.ABORT_AFTER_COOKIE
    for table in (sctp_states.INPUT, sctp_states.OUTPUT, sctp_states.INPUT_ONLY):
        assert table[SctpEvent.ABORT_AFTER_COOKIE] == table[SctpEvent.ABORT]


@pytest.mark.parametrize("cookie", [10, 11])
@pytest.mark.parametrize(
    "behind",
    [
        b"",
        chunk(6)[:3],  # cut short
        chunk(0, 16, bytes(12)) + chunk(6),  # only the next chunk is looked at
        chunk(14),
    ],
)
def test_a_cookie_with_anything_else_behind_it_stays_one(cookie: int, behind: bytes) -> None:
    expected = SctpEvent.COOKIE_ECHO if cookie == 10 else SctpEvent.COOKIE_ACK
    assert event(chunk(cookie, 8, bytes(4)) + behind) == expected


@pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
def test_a_cookie_of_an_impossible_length_has_nothing_behind_it(length: int) -> None:
    assert event(chunk(10, length, chunk(6))) == SctpEvent.COOKIE_ECHO


def test_without_a_whole_chunk_header_there_is_no_event() -> None:
    packet = HEADER + chunk(1)
    for end in range(len(packet)):
        assert event_of(packet + chunk(6), 0, end) is None
    assert event_of(packet, 0, len(packet)) == SctpEvent.INIT


def test_a_packet_is_found_where_it_lies() -> None:
    lead = bytes((6,)) * 7
    assert event_of(memoryview(lead + HEADER + chunk(7) + lead), 7, 23) == SctpEvent.SHUTDOWN


def test_an_association_through_nat_goes_its_usual_way() -> None:
    state = SctpState.NONE
    for table, happened, expected in (
        (sctp_states.INPUT, SctpEvent.INIT, SctpState.INIT1),
        (sctp_states.OUTPUT, SctpEvent.INIT_ACK, SctpState.COOKIE_SENT),
        (sctp_states.INPUT, SctpEvent.COOKIE_ECHO, SctpState.COOKIE_REPLIED),
        (sctp_states.OUTPUT, SctpEvent.COOKIE_ACK, SctpState.ESTABLISHED),
        (sctp_states.INPUT, SctpEvent.DATA, SctpState.ESTABLISHED),
        (sctp_states.INPUT, SctpEvent.SHUTDOWN, SctpState.SHUTDOWN_RECEIVED),
        (sctp_states.OUTPUT, SctpEvent.SHUTDOWN_ACK, SctpState.SHUTDOWN_ACK_SENT),
        (sctp_states.INPUT, SctpEvent.SHUTDOWN_COMPLETE, SctpState.CLOSED),
    ):
        state = SctpState(table[happened][state])
        assert state is expected


def test_an_association_seen_from_one_side_is_established_by_its_cookie() -> None:
    state = SctpState.NONE
    for happened, expected in (
        (SctpEvent.INIT, SctpState.INIT1),
        (SctpEvent.COOKIE_ECHO, SctpState.ESTABLISHED),
        (SctpEvent.SHUTDOWN, SctpState.SHUTDOWN_RECEIVED),
        (SctpEvent.SHUTDOWN_COMPLETE, SctpState.CLOSED),
    ):
        state = SctpState(sctp_states.INPUT_ONLY[happened][state])
        assert state is expected


def test_only_an_init_opens_and_a_sloppy_director_takes_all_but_aborts() -> None:
    opening = {event.name for event in SctpEvent if sctp_states.OPENS[event]}
    assert opening == {"INIT"}
    assert sctp_states.MAY_OPEN == sctp_states.OPENS
    refused = {event.name for event in SctpEvent if not sctp_states.MAY_OPEN_SLOPPY[event]}
    assert refused == {"ABORT"}


def test_marks_of_states_are_the_kernels() -> None:
    def marked(marks: tuple[bool, ...]) -> set[str]:
        return {sctp_states.NAMES[state] for state in SctpState if marks[state]}

    assert marked(sctp_states.ACTIVE) == {"ESTABLISHED"}
    assert marked(sctp_states.REUSABLE) == {"CLOSED"}
    assert marked(sctp_states.TOLD) == {
        "ESTABLISHED",
        "S-SENT",
        "S-RECEIVED",
        "S-ACK-SENT",
        "CLOSED",
    }


def test_timeouts_are_the_kernels() -> None:
    expected = (2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61)
    assert expected == sctp_states.TIMEOUTS
