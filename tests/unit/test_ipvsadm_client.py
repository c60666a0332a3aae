"""The command ipvsadm and a director, with the control socket between them left out."""

import io
import json
import os
import random
import socket
import sys
from collections.abc import Callable

import pytest

from lvsha import control
from lvsha.administration import Administration
from lvsha.datapath.director import Director
from lvsha.datapath.services import ServiceIdentity, ServiceOptions
from lvsha.errors import HostError, WireError
from lvsha.ipvsadm import client
from lvsha.ipvsadm.client import Ipvsadm
from lvsha.ipvsadm.commands import PAGE_LINES
from lvsha.ipvsadm.exchange import LINES_MAX, Answer, Request
from lvsha.ipvsadm.names import RecordedNames
from lvsha.ipvsadm.resolver import SystemNames
from lvsha.model import Protocol

NAMES = RecordedNames(
    "192.0.2.10 www.example.test\n10.1.0.2 real.example.test", ["http 80/tcp", "domain 53/udp"]
)


class Terminal:
    """Where ipvsadm is typed; what is asked goes through JSON, as on the socket."""

    def __init__(self) -> None:
        self.director = Director(connections_max=10_000, dice=random.Random(1))
        self._administration = Administration(self.director, lambda: 1000.0)
        self.requests: list[Request] = []

    def ask(self, request: Request) -> Answer:
        self.requests.append(request)
        sent = json.loads(json.dumps(request.model_dump(mode="json")))
        return Answer.parse(json.loads(json.dumps(self._administration.ipvsadm(sent))))

    def run(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        command = Ipvsadm(self.ask, NAMES, io.StringIO(stdin), out, err)
        status = command.run(words)
        return status, out.getvalue(), err.getvalue()


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_names_are_looked_up_before_the_director_is_asked(terminal: Terminal) -> None:
    assert terminal.run("-A", "-t", "www.example.test:http") == (0, "", "")
    assert terminal.run("-a", "-t", "www.example.test:http", "-r", "real.example.test", "-m") == (
        0,
        "",
        "",
    )
    assert terminal.run("-Sn")[1] == (
        "-A -t 192.0.2.10:80 -s wlc\n-a -t 192.0.2.10:80 -r 10.1.0.2:80 -m -w 1\n"
    )


def test_a_listing_without_n_has_names(terminal: Terminal) -> None:
    terminal.run("-A", "-t", "192.0.2.10:80")
    terminal.run("-A", "-u", "192.0.2.11:53")
    assert terminal.run("-S") == (
        0,
        "-A -t www.example.test:http -s wlc\n-A -u 192.0.2.11:domain -s wlc\n",
        "",
    )


def test_a_listing_in_numbers_asks_once(terminal: Terminal) -> None:
    terminal.run("-A", "-t", "192.0.2.10:80")
    terminal.requests.clear()
    assert "192.0.2.10:80" in terminal.run("-Ln")[1]
    assert len(terminal.requests) == 1


def test_a_mistake_is_told_without_asking(terminal: Terminal) -> None:
    assert terminal.run("-A", "-t", "nosuch.example.test:80") == (
        2,
        "",
        "illegal virtual server address[:port] specified\n",
    )
    assert terminal.run("-h")[1].startswith("ipvsadm v1.31 ")
    assert terminal.run("-v")[1].startswith("ipvsadm v1.31 ")
    assert terminal.requests == []


def test_what_the_director_refuses_is_told(terminal: Terminal) -> None:
    assert terminal.run("-D", "-f", "5") == (255, "", "No such service\n")
    assert terminal.run("-L", "-f", "5") == (1, "", "No such service\n")


def test_a_long_listing_is_put_together(terminal: Terminal) -> None:
    for mark in range(1, 2501):
        terminal.director.services.add(
            ServiceIdentity(4, Protocol.TCP, mark=mark), ServiceOptions()
        )
    status, out, _ = terminal.run("-S")
    assert status == 0
    assert out.splitlines() == [f"-A -f {mark} -s wlc" for mark in range(1, 2501)]
    assert len(terminal.requests) > len(out.splitlines()) / (PAGE_LINES + 1)


# Restore


def test_a_restore_is_sent_in_batches(terminal: Terminal) -> None:
    lines = "".join(f"-A -f {mark}\n\n# {mark}\n" for mark in range(1, 2 * LINES_MAX + 2))
    assert terminal.run("-R", stdin=lines) == (0, "", "")
    assert len(terminal.director.services) == 2 * LINES_MAX + 1
    assert len(terminal.requests) == 3


def test_a_restore_has_names(terminal: Terminal) -> None:
    assert terminal.run("-R", stdin="ipvsadm -A -t www.example.test:http\n") == (0, "", "")
    assert terminal.run("-Sn")[1] == "-A -t 192.0.2.10:80 -s wlc\n"


def test_a_restore_ends_at_a_mistake_and_reads_no_further(terminal: Terminal) -> None:
    status, _, err = terminal.run("-R", stdin="-A -f 1\n-A -f 2 foo\n-A -f 3\n")
    assert (status, err) == (2, "unexpected argument foo\n")
    assert [service.identity.mark for service in terminal.director.services] == [1]


def test_a_mistake_in_a_restore_is_told_before_more_is_read(terminal: Terminal) -> None:
    stdin, err = io.StringIO("-A -f 1\n-Q\n-A -f 3\n"), io.StringIO()
    assert Ipvsadm(terminal.ask, NAMES, stdin, io.StringIO(), err).run(["-R"]) == 255
    assert stdin.read() == "-A -f 3\n"


def test_the_status_of_a_restore_is_that_of_its_last_line(terminal: Terminal) -> None:
    assert terminal.run("-R", stdin="-D -f 1\n-A -f 1\n") == (0, "", "No such service\n")
    assert terminal.run("-R", stdin="-A -f 2\n-D -f 9\n") == (255, "", "No such service\n")
    assert terminal.run("-R", stdin="") == (0, "", "")


# The program


def test_without_a_director_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(command: str, arguments: object) -> object:
        assert command == "ipvsadm"
        raise HostError("no lvsha director runs in this network namespace")

    monkeypatch.setattr(control, "ask", absent)
    assert client.run(["-Ln"]) == 255
    assert capsys.readouterr().err == "ipvsadm: no lvsha director runs in this network namespace\n"


@pytest.mark.parametrize("answer", [None, [], {}, {"status": "x"}, {"status": 0, "colour": 1}])
def test_an_answer_that_makes_no_sense_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: object
) -> None:
    monkeypatch.setattr(control, "ask", lambda *_: answer)
    assert client.run(["-Ln"]) == 255
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(WireError):
        Answer.parse(answer)


def test_the_program_takes_its_words_and_gives_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ipvsadm", "-L", "foo"])
    with pytest.raises(SystemExit) as caught:
        client.main()
    assert caught.value.code == 2


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="ascii") as out:  # noqa: PTH123 - a descriptor has no path
        monkeypatch.setattr(sys, "stdout", out)
        assert client.run(["-v"]) == 255


def test_bytes_that_are_no_text_are_written_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"-A \xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert client.run(["-L", "\udcff"]) == 2
    assert capsys.readouterr().err == "unexpected argument \\xff\n"
    assert stdin.read() == "-A \\xff\n"


# The machine's own names


def raising(error: Exception) -> Callable[..., object]:
    def fail(*arguments: object) -> object:
        raise error

    return fail


def test_the_machines_names_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    names = SystemNames()
    ends = {
        socket.AF_INET: [(0, 0, 0, "", ("192.0.2.1", 0))],
        socket.AF_INET6: [(0, 0, 0, "", ("fe80::1%eth0", 0, 0, 2))],
    }
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked: ends[asked[2]])
    assert names.address("www", 4) == bytes((192, 0, 2, 1))
    assert names.address("www", 6) == bytes.fromhex("fe80" + 13 * "00" + "01")
    monkeypatch.setattr(socket, "getnameinfo", lambda where, _: (f"name of {where[0]}", "0"))
    assert names.host(bytes((192, 0, 2, 1))) == "name of 192.0.2.1"
    assert names.host(bytes(15) + b"\1") == "name of ::1"
    monkeypatch.setattr(socket, "getservbyname", lambda name, protocol: len(name + protocol))
    monkeypatch.setattr(socket, "getservbyport", lambda port, protocol: f"{port} of {protocol}")
    assert names.port("http", Protocol.TCP) == 7
    assert names.service(53, Protocol.UDP) == "53 of udp"


@pytest.mark.parametrize("error", [OSError("no"), UnicodeError("no"), ValueError("no")])
def test_what_the_machine_does_not_know_has_no_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    names = SystemNames()
    for function in ("getservbyname", "getservbyport"):
        monkeypatch.setattr(socket, function, raising(error))
    assert names.port("http", Protocol.TCP) is None
    assert names.service(80, Protocol.TCP) is None
    if type(error) is not ValueError:
        for function in ("getaddrinfo", "getnameinfo"):
            monkeypatch.setattr(socket, function, raising(error))
        assert names.address("www", 4) is None
        assert names.host(bytes(4)) is None
    assert names.port("http", 250) is None
