"""What is no plain TCP or UDP service on one port, between real stacks."""

import ftplib
import io
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.yard import (
    CLIENT,
    NEEDS,
    OTHER_VIP,
    OUTSIDE,
    SERVER,
    VIP,
    WAIT,
    Echo,
    Inside,
    Running,
    Yard,
    a_director,
    a_socket,
    a_yard,
    ask,
    ask_datagram,
    service,
    until,
    within,
)

pytestmark = NEEDS

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
UDP_PORT, OWN_PORT, MARKED_PORTS, MARK_PORT = 53, 5353, (7000, 7001), 7000
ALL_PORT, HOST_PORT = 9100, 2222
FTP_USER, FTP_FILE = "somebody", bytes(range(256)) * 2_048
SCTP = 132


class ExtendedClient(ftplib.FTP):
    """Speaks the commands of RFC 2428 over IPv4 too; ftplib keeps them for IPv6."""

    def makepasv(self) -> tuple[str, int]:
        port = int(self.sendcmd("EPSV").split("|")[3])
        return VIP[4 if self.af == socket.AF_INET else 6], port

    def sendport(self, host: str, port: int) -> str:
        return self.sendcmd(f"EPRT |{1 if self.af == socket.AF_INET else 2}|{host}|{port}|")


class FtpServer:
    """Just enough of RFC 959 and RFC 2428 for one client after the other."""

    def __init__(self, namespace: str, family: int, address: str) -> None:
        self._address = address
        self._family = socket.AF_INET6 if family == 6 else socket.AF_INET
        self._listener = a_socket(namespace, family, socket.SOCK_STREAM, (address, 21))
        self._listener.listen(4)
        self._listener.settimeout(0.1)
        self._stopped = False
        self.stored = b""
        self._thread = Inside(namespace, self._serve)

    def _serve(self) -> None:
        while not self._stopped:
            with suppress(TimeoutError):
                control, _ = self._listener.accept()
                control.settimeout(WAIT)
                with control, suppress(OSError):
                    self._talk(control)

    def _talk(self, control: socket.socket) -> None:
        passive: socket.socket | None = None
        active: tuple[str, int] | None = None

        def say(text: str) -> None:
            control.sendall(f"{text}\r\n".encode())

        def connect() -> socket.socket:
            if active is not None:
                made = socket.socket(self._family, socket.SOCK_STREAM)
                made.settimeout(WAIT)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((self._address, 20))
                made.connect(active)
                return made
            assert passive is not None
            made, _ = passive.accept()
            passive.close()
            return made

        say("220 here")
        with control.makefile("rb") as lines:
            for line in lines:
                command, _, word = line.decode().strip().partition(" ")
                match command.upper():
                    case "PASV" | "EPSV":
                        active, passive = None, self._listen()
                        port = passive.getsockname()[1]
                        numbers = f"{self._address.replace('.', ',')},{port >> 8},{port & 255}"
                        say(
                            f"229 extended (|||{port}|)"
                            if command.upper() == "EPSV"
                            else f"227 passive ({numbers})"
                        )
                    case "PORT":
                        parts = word.split(",")
                        active = ".".join(parts[:4]), int(parts[4]) << 8 | int(parts[5])
                        say("200 good")
                    case "EPRT":
                        _, _, address, number, _ = word.split(word[0])
                        active = address, int(number)
                        say("200 good")
                    case "RETR" | "STOR":
                        say("150 now")
                        with connect() as data:
                            data.settimeout(WAIT)
                            if command.upper() == "RETR":
                                data.sendall(FTP_FILE)
                            else:
                                with data.makefile("rb") as whole:
                                    self.stored = whole.read()
                        say("226 done")
                    case "QUIT":
                        say("221 bye")
                        return
                    case _:
                        say("230 good")

    def _listen(self) -> socket.socket:
        made = socket.socket(self._family, socket.SOCK_STREAM)
        made.settimeout(WAIT)
        made.bind((self._address, 0))
        made.listen(1)
        return made

    def close(self) -> None:
        self._stopped = True
        self._thread.join()
        self._listener.close()


def configuration() -> str:
    text = "".join(
        f'\n[[marks]]\nmark = {mark}\ndestinations = ["{VIP[family]}", "{OTHER_VIP[family]}"]\n'
        f'protocol = "{protocol}"\nports = ["{MARKED_PORTS[0]}-{MARKED_PORTS[-1]}"]\n'
        for family, mark in ((4, 1), (6, 2))
        for protocol in ("tcp", "udp")
    )
    for family in (4, 6):
        there = f'address = "{SERVER[family]}"'
        text += service(f"marked-{family}", f"mark = {family // 2 - 1}; family = {family}", there)
        text += service(
            f"udp-{family}",
            f'address = "{VIP[family]}"; port = {UDP_PORT}; protocol = "udp"',
            f"{there}, port = {OWN_PORT}",
        )
        text += service(f"ftp-{family}", f'address = "{VIP[family]}"; port = 21', there)
        text += service(
            f"sctp-{family}", f'address = "{VIP[family]}"; port = 99; protocol = "sctp"', there
        )
        text += service(
            f"all-{family}",
            f'address = "{OTHER_VIP[family]}"; port = 0; persistence = 60',
            there,
        )
    return text


@pytest.fixture(scope="module")
def yard() -> Iterator[Yard]:
    with a_yard("lvshp") as made:
        yield made


@pytest.fixture(scope="module")
def ftp(yard: Yard) -> Iterator[dict[int, FtpServer]]:
    servers = {family: FtpServer(yard.server, family, SERVER[family]) for family in (4, 6)}
    yield servers
    for server in servers.values():
        server.close()


@pytest.fixture(scope="module")
def director(
    yard: Yard, ftp: dict[int, FtpServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    servers = [
        Echo(namespace, family, address[family], port, name)
        for family in (4, 6)
        for namespace, address, port, name in (
            (yard.server, SERVER, OWN_PORT, "server"),
            (yard.server, SERVER, ALL_PORT, "all"),
            *((yard.server, SERVER, port, "marked") for port in MARKED_PORTS),
            (yard.director, VIP, HOST_PORT, "host"),
            (yard.director, OUTSIDE, OWN_PORT, "host"),
            (yard.client, CLIENT, OWN_PORT, "client"),
        )
    ]
    directory = tmp_path_factory.mktemp("director")
    with a_director(yard, directory, configuration(), servers) as running:
        yield running


@FAMILIES
@pytest.mark.parametrize("length", [100, 1473, 9000, 60_000])
def test_datagrams_in_fragments_pass_both_ways(
    director: Running, yard: Yard, family: int, length: int
) -> None:
    data = bytes(length)
    for _ in range(3):
        answer = ask_datagram(yard.client, family, VIP[family], UDP_PORT, data)
        assert answer == b"server " + data


@FAMILIES
def test_fragments_of_a_service_never_reach_the_host(
    director: Running, yard: Yard, family: int
) -> None:
    def received() -> int:
        name = "Ip6ReasmReqds" if family == 6 else "IpReasmReqds"
        counters = yard.on_director("nstat", "-asz", name)
        return int(re.findall(rf"{name}\s+(\d+)", counters)[0])

    before = received()
    ask_datagram(yard.client, family, VIP[family], UDP_PORT, bytes(9000))
    assert received() == before
    # The host's own service on the same address gets its fragments.
    assert ask_datagram(yard.client, family, VIP[family], HOST_PORT, bytes(9000))[:5] == b"host "
    assert received() > before


@FAMILIES
@pytest.mark.parametrize("passive", [True, False], ids=["passive", "active"])
@pytest.mark.parametrize("extended", [False, True], ids=["plain", "extended"])
def test_files_go_both_ways_by_ftp(
    director: Running,
    yard: Yard,
    ftp: dict[int, FtpServer],
    family: int,
    passive: bool,
    extended: bool,
) -> None:
    if family == 6 and not extended:
        pytest.skip("IPv6 has extended commands only")

    def exchange() -> bytes:
        received = bytearray()
        kind = ExtendedClient if extended else ftplib.FTP
        with kind(timeout=WAIT) as client:
            client.connect(VIP[family], 21)
            client.set_pasv(passive)
            client.login(FTP_USER)
            client.retrbinary("RETR file", received.extend)
            client.storbinary("STOR file", io.BytesIO(FTP_FILE[::-1]))
            client.quit()
        return bytes(received)

    assert within(yard.client, exchange) == FTP_FILE
    until(lambda: ftp[family].stored == FTP_FILE[::-1])


@FAMILIES
def test_a_port_of_ftp_that_no_connection_knows_is_the_hosts(
    director: Running, yard: Yard, family: int
) -> None:
    assert ask(yard.client, family, VIP[family], HOST_PORT, b"x") == b"host x"
    with pytest.raises(ConnectionRefusedError):
        ask(yard.client, family, VIP[family], HOST_PORT + 1, b"x")


@FAMILIES
def test_a_servers_own_connections_pass_through_the_host(
    director: Running, yard: Yard, family: int
) -> None:
    assert ask(yard.server, family, CLIENT[family], OWN_PORT, b"x") == b"client x"
    assert ask(yard.server, family, OUTSIDE[family], OWN_PORT, b"x") == b"host x"


@FAMILIES
@pytest.mark.parametrize("address", [VIP, OTHER_VIP], ids=["one", "other"])
@pytest.mark.parametrize("port", MARKED_PORTS)
def test_a_mark_makes_one_service_of_several_addresses_and_ports(
    director: Running, yard: Yard, family: int, address: dict[int, str], port: int
) -> None:
    assert ask(yard.client, family, address[family], port, b"x" * 100_000)[:8] == b"marked x"
    assert ask_datagram(yard.client, family, address[family], port, b"x") == b"marked x"


@FAMILIES
def test_a_service_for_all_ports_has_them_all(director: Running, yard: Yard, family: int) -> None:
    assert ask(yard.client, family, OTHER_VIP[family], ALL_PORT, b"x") == b"all x"
    assert ask(yard.client, family, OTHER_VIP[family], OWN_PORT, b"x") == b"server x"


@FAMILIES
def test_sctp_passes(director: Running, yard: Yard, family: int) -> None:
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    try:
        listener = within(yard.server, lambda: socket.socket(kind, socket.SOCK_STREAM, SCTP))
    except OSError as error:
        pytest.skip(f"the kernel has no SCTP: {error}")
    client = within(yard.client, lambda: socket.socket(kind, socket.SOCK_STREAM, SCTP))
    with listener, client:
        listener.bind((SERVER[family], 99))
        listener.listen(1)
        listener.settimeout(WAIT)
        client.settimeout(WAIT)
        client.connect((VIP[family], 99))
        made, _ = listener.accept()
        with made:
            client.sendall(b"there")
            assert made.recv(100) == b"there"
            made.sendall(b"back")
            assert client.recv(100) == b"back"


def test_rules_follow_the_filter_of_a_mark_for_a_whole_prefix(
    director: Running, yard: Yard, tmp_path: Path
) -> None:
    director.end()
    text = '\n[[marks]]\nmark = 7\ndestinations = ["0.0.0.0/0"]\nprotocol = "tcp"\nports = [7001]\n'
    text += service("all", "mark = 7; family = 4", f'address = "{SERVER[4]}"')
    with a_director(yard, tmp_path, text):
        for address in (VIP[4], OTHER_VIP[4], "203.0.113.7"):
            assert ask(yard.client, 4, address, 7001, b"x") == b"marked x"
        assert ask(yard.client, 4, VIP[4], HOST_PORT, b"x") == b"host x"
