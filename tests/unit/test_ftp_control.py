"""FTP through NAT, end to end: both ends of a control connection, and their data connections."""

import pytest
from scapy.layers.inet import TCP

from lvsha.datapath.memories import FtpDialogue
from lvsha.datapath.reasons import Reason
from lvsha.datapath.tcp_states import TcpState
from lvsha.model import (
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    Protocol,
    parse_address,
)
from tests import packets
from tests.ftp_session import PORT, WRAP, Session, numbers, pasv, text_of
from tests.laboratory import C4, C6, DR, S4, S6, TUN, V4, V6, Laboratory
from tests.packets import ACK, FIN, PSH, RST, SYN
from tests.reader import dissect, faults

FAMILIES = pytest.mark.parametrize(("client", "vip", "server"), [(C4, V4, S4), (C6, V6, S6)])


# Passive


def test_a_passive_answer_names_the_virtual_service_and_all_later_numbers_are_right() -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    left = session.say(pasv())
    assert text_of(left) == pasv(V4)
    assert len(pasv()) != len(pasv(V4)), "the length has changed"
    for number in range(4):
        session.ask(b"NOOP %d\r\n" % number)
        session.say(b"200 fine\r\n")
    session.send(from_client=True, flags=FIN | ACK)
    session.send(from_client=False, flags=FIN | ACK)
    session.send(from_client=True, flags=ACK)
    assert session.client_end.text.endswith(b"200 fine\r\n" * 4)
    assert session.laboratory.drops() == {}


@FAMILIES
def test_an_extended_passive_answer_names_a_port_alone_in_both_families(
    client: str, vip: str, server: str
) -> None:
    session = Session(client, vip, server).begin()
    session.ask(b"EPSV\r\n")
    assert text_of(session.say(b"229 ok (|||5000|)\r\n")) == b"229 ok (|||5000|)\r\n"
    session.ask(b"EPSV\r\n")
    family = 2 if ":" in vip else 1
    long = f"229 ok (|{family}|{server}|5001|)\r\n".encode()
    assert text_of(session.say(long)) == b"229 ok (|||5001|)\r\n"
    session.ask(b"NOOP\r\n")
    session.say(b"200 fine\r\n")
    assert [each.virtual[1] for each in session.table if each.parent] == [5000, 5001]


@FAMILIES
def test_the_data_connection_of_a_passive_transfer_goes_through_both_ways(
    client: str, vip: str, server: str
) -> None:
    session = Session(client, vip, server).begin()
    session.ask(b"EPSV\r\n")
    session.say(b"229 ok (|||5000|)\r\n")
    data, table = session.data, session.laboratory.director.registry.table
    assert data.flags & ConnectionFlag.NO_CLIENT_PORT
    assert (data.state, data.timeout, data.parent) == (TcpState.LISTEN, 120.0, session.control)
    assert (table.unknown_ports, data.client[1]) == (1, 0)
    send = session.laboratory.send
    (left,) = send("client", packets.tcp(client, 40777, vip, 5000, SYN))
    assert left.packet == packets.tcp(client, 40777, server, 5000, SYN, ttl=63)
    assert (table.unknown_ports, data.client[1], data.state) == (0, 40777, TcpState.SYN_RECV)
    (left,) = send("server", packets.tcp(server, 5000, client, 40777, SYN | ACK))
    assert left.packet == packets.tcp(vip, 5000, client, 40777, SYN | ACK, ttl=63)
    (left,) = send("client", packets.tcp(client, 40777, vip, 5000, ACK))
    assert left.packet == packets.tcp(client, 40777, server, 5000, ACK, ttl=63)
    assert data.state == TcpState.ESTABLISHED
    # Another client port is another connection, which nobody expects.
    assert send("client", packets.tcp(client, 40778, vip, 5000, SYN)) == []
    assert session.laboratory.miscounted() == []
    assert (session.server.active, session.control.children) == (2, 1)


def test_an_answer_that_is_sent_again_is_rewritten_again_and_moves_no_more_numbers() -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    before = session.server_end.sent
    first = session.say(pasv(), lost=True)
    again = session.segment(from_client=False, flags=ACK | PSH, payload=pasv(), sequence=before)
    (left,) = session.laboratory.send("server", again)
    assert left.packet == first.packet
    session._arrive(left, session.client_end)
    assert session.client_end.text.endswith(pasv(V4))
    session.send(from_client=True, flags=ACK)
    session.ask(b"NOOP\r\n")
    session.say(b"200 fine\r\n")


def test_a_client_that_has_not_got_the_answer_confirms_what_was_before_it() -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    session.say(pasv(), lost=True)
    seen = session.client_end.seen
    (left,) = session.laboratory.send("client", session.segment(from_client=True, flags=ACK))
    assert dissect(left.packet)[TCP].ack == seen


def test_several_passive_transfers_add_up() -> None:
    session = Session(first=WRAP - 90).begin()
    for port in (5000, 255, 60000, 1024):
        session.ask(b"PASV\r\n")
        assert text_of(session.say(pasv(port=port))) == pasv(V4, port)
        session.ask(b"LIST\r\n")
        session.say(b"226 done\r\n")
    assert session.client_end.seen > WRAP
    assert session.control.children == 4
    assert session.client_end.text.count(b"226 done") == 4


def test_edges_of_selective_confirmations_are_as_the_server_counts() -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    session.say(pasv())
    behind = session.client_end.seen
    packet = session.segment(
        from_client=True, flags=ACK, options=[("SAck", (behind + 10, behind + 20))]
    )
    (left,) = session.laboratory.send("client", packet)
    assert faults(left.packet) == []
    sent = session.server_end.sent
    options = dict(dissect(left.packet)[TCP].options)
    assert options["SAck"] == (sent + 10, sent + 20)


@pytest.mark.parametrize(
    "text",
    [
        b"220 ready\r\n",
        pasv("10.9.9.9"),  # somebody else's address
        b"227 Entering Passive Mode (10,1,0,11,19).\r\n",
        b"229 ok (|||5000|)\r\n",  # not what was asked for
        b" " + pasv(),
    ],
)
def test_other_words_of_the_server_pass_unchanged_and_open_nothing(text: bytes) -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    assert text_of(session.say(text)) == text
    assert len(session.table) == 1


def test_an_answer_that_was_not_asked_for_passes_unchanged() -> None:
    session = Session().begin()
    assert text_of(session.say(pasv())) == pasv()
    session.ask(b"PASV\r\n")
    session.say(pasv())
    assert text_of(session.say(pasv(port=5001))) == pasv(port=5001)
    assert len(session.table) == 2


# Active


@pytest.mark.parametrize("port", [21, 2121])
def test_the_data_connection_of_an_active_transfer_comes_from_the_port_below(port: int) -> None:
    session = Session(port=port).begin()
    command = b"PORT " + numbers(C4, 40555) + b"\r\n"
    assert text_of(session.ask(command)) == command
    data = session.data
    assert data.key == bytes((4, 6)) + parse_address(C4) + parse_address(V4) + (40555).to_bytes(
        2
    ) + (20).to_bytes(2)
    assert (data.state, data.binding.port) == (TcpState.LISTEN, port - 1)
    assert not data.flags & ConnectionFlag.NO_CLIENT_PORT
    send = session.laboratory.send
    (left,) = send("server", packets.tcp(S4, port - 1, C4, 40555, SYN))
    assert (left.side, left.packet) == ("client", packets.tcp(V4, 20, C4, 40555, SYN, ttl=63))
    (left,) = send("client", packets.tcp(C4, 40555, V4, 20, SYN | ACK))
    assert left.packet == packets.tcp(C4, 40555, S4, port - 1, SYN | ACK, ttl=63)
    for _ in range(2):
        (left,) = send("server", packets.tcp(S4, port - 1, C4, 40555, ACK, b"data"))
        assert left.packet == packets.tcp(V4, 20, C4, 40555, ACK, b"data", ttl=63)
    assert data.state == TcpState.ESTABLISHED
    assert session.laboratory.miscounted() == []


@FAMILIES
def test_an_extended_active_transfer_is_expected_in_both_families(
    client: str, vip: str, server: str
) -> None:
    session = Session(client, vip, server).begin()
    family = 2 if ":" in vip else 1
    session.ask(f"EPRT |{family}|{client}|40555|\r\n".encode())
    (left,) = session.laboratory.send("server", packets.tcp(server, 20, client, 40555, SYN))
    assert left.packet == packets.tcp(vip, 20, client, 40555, SYN, ttl=63)


def test_an_active_transfer_may_go_to_another_host_than_the_client() -> None:
    session = Session().begin()
    session.ask(b"PORT " + numbers("198.51.100.200", 40555) + b"\r\n")
    (left,) = session.laboratory.send("server", packets.tcp(S4, 20, "198.51.100.200", 40555, SYN))
    assert left.packet == packets.tcp(V4, 20, "198.51.100.200", 40555, SYN, ttl=63)


def test_a_command_that_is_repeated_expects_the_same_connection_anew() -> None:
    session = Session().begin()
    command = b"PORT " + numbers(C4, 40555) + b"\r\n"
    session.ask(command)
    first = session.data
    session.laboratory.sleep(100)
    session.ask(command)
    assert session.data is first
    assert first.expires == session.laboratory.now + 120
    session.laboratory.sleep(119)
    assert session.data is first
    session.laboratory.sleep(3)
    assert session.table == [session.control]


# The lives of control and data


def test_a_control_connection_lives_as_long_as_its_data() -> None:
    session = Session().begin()
    session.ask(b"EPSV\r\n")
    session.say(b"229 ok (|||5000|)\r\n")
    control, data = session.control, session.data
    for flags in (SYN, ACK):
        session.laboratory.send("client", packets.tcp(C4, 40777, V4, 5000, flags))
    for _ in range(10):
        session.laboratory.sleep(800)
        session.laboratory.send("client", packets.tcp(C4, 40777, V4, 5000, ACK))
    assert session.table in ([control, data], [data, control])
    assert control.timeout == 60.0
    session.say(b"226 done\r\n")
    assert control.timeout == 900.0
    for _ in range(3):
        session.laboratory.sleep(1000)
    assert session.table == []
    assert session.server.idle


def test_a_passive_connection_that_nobody_opens_ends() -> None:
    session = Session().begin()
    session.ask(b"EPSV\r\n")
    session.say(b"229 ok (|||5000|)\r\n")
    session.laboratory.sleep(122)
    assert session.table == [session.control]
    assert session.laboratory.director.registry.table.unknown_ports == 0


def test_a_port_that_another_server_names_for_the_same_client_is_the_newest_ones() -> None:
    session = Session().begin()
    session.ask(b"EPSV\r\n")
    session.say(b"229 ok (|||5000|)\r\n")
    laboratory = session.laboratory
    other = laboratory.server(session.server.service, "10.1.0.12")
    for side, packet in (
        ("client", packets.tcp(C4, 41000, V4, 21, SYN)),
        ("server", packets.tcp("10.1.0.12", 21, C4, 41000, SYN | ACK)),
        ("client", packets.tcp(C4, 41000, V4, 21, ACK)),
        ("client", packets.tcp(C4, 41000, V4, 21, ACK, b"EPSV\r\n")),
        ("server", packets.tcp("10.1.0.12", 21, C4, 41000, ACK, b"229 ok (|||5000|)\r\n")),
    ):
        assert len(laboratory.send(side, packet)) == 1
    (left,) = laboratory.send("client", packets.tcp(C4, 40777, V4, 5000, SYN))
    assert left.packet == packets.tcp(C4, 40777, "10.1.0.12", 5000, SYN, ttl=63)
    assert (session.server.active, other.active) == (1, 2)
    assert laboratory.miscounted() == []


def test_a_client_at_port_0_does_not_take_what_is_meant_for_an_unknown_port() -> None:
    session = Session().begin()
    session.ask(b"EPSV\r\n")
    session.say(b"229 ok (|||5000|)\r\n")
    laboratory = session.laboratory
    laboratory.server(laboratory.service(port=80))
    for port in (0, 5):
        assert len(laboratory.send("client", packets.tcp(C4, port, V4, 80, SYN))) == 1
    assert sorted(each.client[1] for each in session.table) == [0, 0, 5, PORT]
    (left,) = laboratory.send("client", packets.tcp(C4, 40777, V4, 5000, SYN))
    assert left.side == "server"


# What is refused or left alone


@pytest.mark.parametrize("method", [DR, TUN], ids=["dr", "tun"])
def test_with_other_methods_than_nat_nothing_is_read(method: ForwardMethod) -> None:
    session = Session(method=method)
    for flags, payload in ((SYN, b""), (ACK, b""), (ACK, b"PORT " + numbers(C4, 1) + b"\r\n")):
        packet = packets.tcp(C4, PORT, V4, 21, flags, payload)
        (left,) = session.laboratory.send("client", packet)
        assert left.packet.endswith(packet[20:])
    assert [each.dialogue for each in session.table] == [None]


@pytest.mark.parametrize("from_client", [True, False])
def test_a_damaged_segment_is_dropped(from_client: bool) -> None:
    session = Session().begin()
    packet = bytearray(
        session.segment(from_client=from_client, flags=ACK | PSH, payload=b"NOOP\r\n")
    )
    packet[-1] ^= 1
    side = "client" if from_client else "server"
    assert session.laboratory.send(side, bytes(packet)) == []
    assert session.laboratory.drops() == {Reason.TRANSPORT_CHECKSUM: 1}


@pytest.mark.parametrize("from_client", [True, False])
def test_a_header_longer_than_its_segment_has_no_text_and_passes(from_client: bool) -> None:
    session = Session().begin()
    session.ask(b"PASV\r\n")
    packet = bytearray(session.segment(from_client=from_client, flags=ACK | PSH))
    packet[32] = 0xF0
    packet[36:38] = bytes(2)
    source, destination = bytes(packet[12:16]), bytes(packet[16:20])
    pseudo = packets.pseudo_header(source, destination, 6, len(packet) - 20)
    packet[36:38] = packets.internet_checksum(pseudo + bytes(packet[20:])).to_bytes(2)
    side = "client" if from_client else "server"
    (left,) = session.laboratory.send(side, bytes(packet))
    assert left.packet[32:36] == packet[32:36]
    assert session.table == [session.control]


def test_a_full_table_lets_no_answer_through_that_could_not_be_kept() -> None:
    session = Session()
    session.laboratory.director.registry.table._limit = 1
    session.begin()
    session.ask(b"PASV\r\n")
    packet = session.segment(from_client=False, flags=ACK | PSH, payload=pasv())
    assert session.laboratory.send("server", packet) == []
    assert session.laboratory.drops() == {Reason.TABLE_FULL: 1}
    session.laboratory.director.registry.table._limit = 2
    assert len(session.laboratory.send("server", packet)) == 1


def test_before_the_handshake_is_over_nothing_is_read() -> None:
    session = Session()
    session.send(from_client=True, flags=SYN, payload=b"")
    packet = session.segment(from_client=True, flags=SYN, payload=b"EPSV\r\n")
    session.laboratory.send("client", packet)
    assert session.control.state == TcpState.SYN_RECV
    dialogue = session.control.dialogue
    assert isinstance(dialogue, FtpDialogue)
    assert dialogue.mode.name == "ACTIVE"
    session.laboratory.send("client", packets.tcp(C4, PORT, V4, 21, RST))


def test_an_answer_that_grows_beyond_the_link_is_refused_with_the_size_that_fits() -> None:
    session = Session(server="10.1.0.2").begin()
    session.ask(b"PASV\r\n")
    short = pasv("10.1.0.2", 257)
    text = short + bytes(1500 - 40 - len(short))
    packet = session.segment(from_client=False, flags=ACK | PSH, payload=text)
    assert len(packet) == 1500
    (left,) = session.laboratory.send("server", packet)
    assert (left.side, left.packet[20:22]) == ("server", b"\x03\x04")
    assert session.laboratory.drops() == {Reason.TOO_BIG: 1}


@pytest.mark.parametrize(
    ("client_port", "virtual_port", "real_port"), [(5001, 20, 20), (0, 3000, 3000)]
)
def test_a_data_connection_of_a_peer_is_taken_over(
    client_port: int, virtual_port: int, real_port: int
) -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(V4, 21), S4)
    told = ConnectionRecord.between(
        protocol=Protocol.TCP,
        client=parse_address(C4),
        client_port=client_port,
        virtual=parse_address(V4),
        virtual_port=virtual_port,
        server=parse_address(S4),
        server_port=real_port,
        method=ForwardMethod.NAT,
        state=TcpState.ESTABLISHED,
        flags=0 if client_port else ConnectionFlag.NO_CLIENT_PORT,
        timeout=900,
    )
    assert not laboratory.director.replication.apply([told], laboratory.now)
    packet = packets.tcp(C4, client_port or 6000, V4, virtual_port, packets.ACK)
    (left,) = laboratory.send("client", packet)
    read = dissect(left.packet)
    assert (left.side, read.dst, read.dport) == ("server", S4, real_port)
    assert laboratory.miscounted() == []


def test_a_peers_client_at_port_0_is_that_client_alone() -> None:
    laboratory = Laboratory()
    laboratory.server(laboratory.service(V4, 53, protocol=Protocol.UDP), S4)
    told = ConnectionRecord.between(
        protocol=Protocol.UDP,
        client=parse_address(C4),
        client_port=0,
        virtual=parse_address(V4),
        virtual_port=53,
        server=parse_address(S4),
        server_port=53,
        method=ForwardMethod.NAT,
        state=0,
        flags=ConnectionFlag.INACTIVE,
        timeout=300,
    )
    assert not laboratory.director.replication.apply([told], laboratory.now)
    laboratory.send("client", packets.udp(C4, 6000, V4, 53))
    assert len(laboratory.director.registry.table) == 2
