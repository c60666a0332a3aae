"""An FTP session whose director is replaced in the middle, by one that was told of it."""

import pytest

from lvsha.datapath.tcp_states import TcpState
from lvsha.model import ConnectionFlag
from tests import packets
from tests.ftp_session import PORT, Session, pasv, text_of
from tests.laboratory import C4, C6, S4, S6, V4, V6
from tests.packets import ACK, FIN, PSH, SYN
from tests.twins import carry, repair


def take_over(session: Session, *, late: bool = False) -> None:
    """Let another director go on with all that it was told of; one that has joined late."""
    successor = session.director()
    if late:
        repair(session.laboratory, successor)
    else:
        carry(session.laboratory, successor)
    assert successor.tally.sums == session.laboratory.tally.sums
    session.laboratory = successor


def test_numbers_stay_right_when_the_text_had_changed_in_length() -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    assert text_of(session.say(pasv())) == pasv(V4)
    assert session.control.flags & ConnectionFlag.OUT_SEQUENCE
    take_over(session)
    assert session.control.flags & ConnectionFlag.OUT_SEQUENCE
    session.ask(b"LIST\r\n")
    session.say(b"150 here it comes\r\n")
    take_over(session, late=True)
    session.ask(b"PASV\r\n")
    assert text_of(session.say(pasv(port=5001))) == pasv(V4, 5001)
    session.send(from_client=True, flags=FIN | ACK)
    session.send(from_client=False, flags=FIN | ACK)
    session.send(from_client=True, flags=ACK)
    assert session.laboratory.drops() == {}


def test_the_answer_to_a_question_that_was_asked_before_is_rewritten() -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    take_over(session)
    assert text_of(session.say(pasv())) == pasv(V4)


@pytest.mark.parametrize("same_length", [True, False])
def test_an_answer_that_is_sent_again_is_rewritten_again(same_length: bool) -> None:
    vip = "192.0.2.1" if same_length else V4
    session = Session(vip=vip).begin()
    session.ask(b"PASV\r\n")
    before = session.server_end.sent
    first = session.say(pasv(), lost=True)
    assert (len(text_of(first)) == len(pasv())) is same_length
    take_over(session)
    again = session.segment(from_client=False, flags=ACK | PSH, payload=pasv(), sequence=before)
    (left,) = session.laboratory.send("server", again)
    assert left.packet == first.packet
    session._arrive(left, session.client_end)
    session.send(from_client=True, flags=ACK)
    session.ask(b"NOOP\r\n")
    session.say(b"200 fine\r\n")


@pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])
@pytest.mark.parametrize("opened", [True, False])
def test_the_data_connection_goes_on(client: str, vip: str, server: str, opened: bool) -> None:
    session = Session(client, vip, server).begin()
    session.ask(b"EPSV\r\n")
    session.say(b"229 ok (|||5000|)\r\n")
    if opened:
        for side, packet in (
            ("client", packets.tcp(client, 40777, vip, 5000, SYN)),
            ("server", packets.tcp(server, 5000, client, 40777, SYN | ACK)),
            ("client", packets.tcp(client, 40777, vip, 5000, ACK)),
        ):
            assert len(session.laboratory.send(side, packet)) == 1
    take_over(session)
    assert session.data.parent is session.control
    if not opened:
        assert session.data.state == TcpState.LISTEN
        (left,) = session.laboratory.send("client", packets.tcp(client, 40777, vip, 5000, SYN))
        assert left.packet == packets.tcp(client, 40777, server, 5000, SYN, ttl=63)
    (left,) = session.laboratory.send("server", packets.tcp(server, 5000, client, 40777, ACK))
    assert left.packet == packets.tcp(vip, 5000, client, 40777, ACK, ttl=63)
    assert session.laboratory.miscounted() == session.laboratory.mistallied() == []


def test_an_active_transfer_goes_on() -> None:
    session = Session().begin()
    session.ask(b"PORT 198,51,100,71,19,136\r\n")
    take_over(session)
    (left,) = session.laboratory.send("server", packets.tcp(S4, 20, C4, 5000, SYN))
    assert left.packet == packets.tcp(V4, 20, C4, 5000, SYN, ttl=63)


def test_a_session_that_nobody_was_told_of_is_told_of_nothing() -> None:
    session = Session()
    session.laboratory.director.registry.tallies.clear()
    session.begin().ask(b"PASV\r\n")
    session.say(pasv())
    assert session.laboratory.director.registry.take_changes() == {}
    assert session.control.client == (packets.address(C4), PORT)
