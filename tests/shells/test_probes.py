"""Probes against servers on the loopback, kind ones and hostile ones.

Each hostile server must be left within the check's time-out and limits, with a reason, and
with everything closed.
"""

import datetime as dt
import gc
import ipaddress
import os
import socket
import ssl
import struct
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import dns.flags
import dns.message
import dns.rrset
import pytest
import structlog.testing
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lvsha.config_health import Check
from lvsha.errors import ConfigError
from lvsha.health.datagrams import DNS_TCP_BYTES_MAX, DNS_UDP_BYTES_MAX
from lvsha.health.opinions import Finding
from lvsha.health.prober import NetworkProber
from lvsha.health.target import Target
from lvsha.health.tls import OVERHEAD_BYTES_MAX, SecuredStream, Tls
from tests.yard import until

HOST = "127.0.0.1"
TIMEOUT = 0.4
"""Of checks of servers that never come to an end."""
PATIENCE = 10.0
MEMORY_BYTES_MAX = 1_000_000
"""That a probe may hold; the limits of what it reads are far below."""

Serve = Callable[[trio.SocketStream], Awaitable[None]]
_Result = TypeVar("_Result")


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all that is wanted


def check(kind: str, **keys: object) -> Check:
    return Check.model_validate({"type": kind, "timeout": PATIENCE, **keys})


def at_a_server(serve: Serve, work: Callable[[Target], Awaitable[_Result]]) -> _Result:
    """Do work while a server listens; afterwards no file may be open that was not before."""

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await serve(stream)

    async def run() -> _Result:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                trio.serve_tcp,
                handle,
                0,
            )
            (listener,) = (each for each in listeners if each.socket.family == socket.AF_INET)
            before = open_files()
            result = await work(Target(HOST, listener.socket.getsockname()[1]))
            # The server's end closes as soon as it notices.
            with trio.fail_after(PATIENCE):
                while not open_files() <= before:  # noqa: ASYNC110 - the kernel has no events
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        return result

    return trio.run(run)


def probe(serve: Serve, what: Check) -> Finding:
    async def work(target: Target) -> Finding:
        prober = NetworkProber()
        await prober.prepare([what], [])
        began = trio.current_time()
        finding = await prober.probe(what, target)
        assert trio.current_time() - began < what.timeout + 0.5
        return finding

    return at_a_server(serve, work)


def answering(*parts: bytes) -> Serve:
    """Wait for a request, answer, and close."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(10_000)
        for part in parts:
            await stream.send_all(part)

    return serve


def page(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


# Hostile servers


async def hanging(stream: trio.SocketStream) -> None:
    """Read, and say nothing until the other side has gone."""
    while await stream.receive_some(10_000):
        pass


async def resetting(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)
    # Closing with a linger time of zero sends a reset (socket(7)).
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await stream.aclose()


async def closing(stream: trio.SocketStream) -> None:
    await stream.receive_some(10_000)


async def trickling(stream: trio.SocketStream) -> None:
    await trickle(stream, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000)


async def trickle(stream: trio.SocketStream, data: bytes) -> None:
    for octet in data:
        await stream.send_all(bytes((octet,)))
        await trio.sleep(0.001)


async def flooding(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)
    await flood(stream, b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536)


async def flood(stream: trio.SocketStream, head: bytes, endless: bytes) -> None:
    await stream.send_all(head)
    while True:
        await stream.send_all(endless)


def endlessly(head: bytes, endless: bytes) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await flood(stream, head, endless)

    return serve


STREAMS = ("http", "https", "smtp")
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("kind", STREAMS)
def test_a_server_that_hangs_is_left_when_the_time_is_up(kind: str) -> None:
    finding = probe(hanging, check(kind, timeout=TIMEOUT))
    assert finding == Finding(False, f"no answer within {TIMEOUT} s")


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_server_that_resets_is_down(kind: str) -> None:
    assert probe(resetting, check(kind)) == Finding(False, "Connection reset by peer")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("http", "closed"), ("https", "TLS:"), ("smtp", "closed before the end")],
)
def test_a_server_that_closes_at_once_is_down(kind: str, reason: str) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        if kind != "smtp":
            await stream.receive_some(10_000)

    finding = probe(serve, check(kind))
    assert not finding.passed
    assert reason in finding.reason or "not HTTP" in finding.reason


def test_a_server_that_trickles_is_left_when_the_time_is_up() -> None:
    assert not probe(trickling, check("http", timeout=TIMEOUT)).passed


def test_a_body_that_trickles_is_left_when_the_time_is_up() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        await trickle(stream, b"x" * 10_000)

    finding = probe(serve, check("http", body="y", timeout=TIMEOUT))
    assert finding == Finding(False, f"no answer within {TIMEOUT} s")


@pytest.mark.parametrize(
    ("kind", "keys", "serve", "reason"),
    [
        ("http", {"body": "y"}, flooding, "the first 65536 bytes are not as expected"),
        ("http", {"body_regex": "y$"}, flooding, "the first 65536 bytes are not as expected"),
        ("http", {}, endlessly(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65_536), "not HTTP"),
        ("http", {}, endlessly(b"", b"HTTP/1.1 100 Go on\r\n\r\n" * 1000), "longer than the limit"),
        ("http", {}, endlessly(b"", b"\0" * 65_536), "not HTTP"),
        (
            "http",
            {"body": "y"},
            endlessly(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000
            ),
            "longer than the limit",
        ),
        ("https", {}, endlessly(b"", b"\x16\x03\x03\x40\x00" + b"x" * 16_384), "TLS: "),
        ("https", {}, endlessly(b"", b"HTTP/1.1 200 OK\r\n\r\n" * 1000), "TLS: "),
        ("http", {}, endlessly(HEAD, b"a:\r\n" * 4_000), "not HTTP: more than 128 lines"),
        ("http", {}, endlessly(HEAD + b"a:", b" " * 16_000 + b"\0\r\n\r\n"), "64 blanks in a row"),
        (
            "http",
            {"body": "y"},
            endlessly(HEAD + CHUNKED + b"5;", b" " * 16_000 + b"\nx\r\n"),
            "not HTTP: more than 64 blanks in a row",
        ),
        (
            "http",
            {"body": "y"},
            endlessly(HEAD + CHUNKED + b"0\r\n", b"a:\r\n" * 4_000),
            "not HTTP: more than 128 lines",
        ),
        ("smtp", {}, endlessly(b"220", b"-x\r\n220" * 10_000), "more than a reply holds"),
        ("smtp", {}, endlessly(b"220 ", b"x" * 65_536), "more than a reply holds"),
    ],
    ids=str,
)
def test_a_server_that_never_stops_is_left_at_the_limit(
    kind: str, keys: dict[str, object], serve: Serve, reason: str
) -> None:
    what = check(kind, **keys)
    tracemalloc.start()
    try:
        finding = probe(serve, what)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not finding.passed
    assert reason in finding.reason
    assert peak < MEMORY_BYTES_MAX + 3 * 16 * 65_536  # what the server holds here, too


def test_many_tiny_chunks_do_not_keep_the_loop() -> None:
    """The whole limit of a body in the smallest chunks, and others have their turn meanwhile."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    waits: list[float] = []

    async def work(target: Target) -> Finding:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while True:
                    began = trio.current_time()
                    await trio.lowlevel.checkpoint()
                    waits.append(trio.current_time() - began)

            nursery.start_soon(watch)
            finding = await NetworkProber().probe(check("http", body="y"), target)
            nursery.cancel_scope.cancel()
        return finding

    at_a_server(endlessly(head, b"1\r\nx\r\n" * 10_000), work)
    # More turns than reads: within one read, too.
    assert len(waits) > 100


# Kind servers

AS_EXPECTED = Finding(True, "status 200, body as expected")


@pytest.mark.parametrize(
    ("keys", "answer", "expected"),
    [
        ({}, page(b""), Finding(True, "status 200")),
        ({}, page(b"", "302 Found"), Finding(False, "status 302")),
        ({"status": [302]}, page(b"", "302 Found"), Finding(True, "status 302")),
        (
            {},
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + page(b""),
            Finding(True, "status 200"),
        ),
        ({"body": "ll"}, page(b"all well"), AS_EXPECTED),
        ({"body_regex": "^all\\s+w"}, page(b"all  well"), AS_EXPECTED),
        ({"body": "x"}, b"HTTP/1.0 200 OK\r\n\r\nabx", AS_EXPECTED),
        ({"body": "x"}, page(b" " * 9_000 + b"\n" * 9_000 + b"x"), AS_EXPECTED),
        (
            {"body": "x"},
            HEAD + CHUNKED + b"800\r\n" + b" " * 2_048 + b"\r\n1\r\nx\r\n0\r\n\r\n",
            AS_EXPECTED,
        ),
        (
            {"body": "x"},
            page(b"all well"),
            Finding(False, "status 200, but the first 8 bytes are not as expected"),
        ),
        (
            {"body": "well", "body_max": 5},
            page(b"all well"),
            Finding(False, "status 200, but the first 5 bytes are not as expected"),
        ),
    ],
)  # fmt: skip
def test_http_looks_at_status_and_body(
    keys: dict[str, object], answer: bytes, expected: Finding
) -> None:
    assert probe(answering(answer), check("http", **keys)) == expected


def test_a_substring_is_found_across_two_pieces() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(10_000)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nall we")
        await trio.sleep(0.05)
        await stream.send_all(b"ll")
        await hanging(stream)

    assert probe(serve, check("http", body="all well")).passed


def test_a_request_says_what_is_asked() -> None:
    asked: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        asked.append(bytes(await stream.receive_some(10_000)))
        await stream.send_all(page(b""))

    probe(serve, check("http", method="HEAD", path="/a?b", host="www.example.org"))
    line, *headers = asked[0].split(b"\r\n")
    assert line == b"HEAD /a?b HTTP/1.1"
    assert b"Host: www.example.org" in headers
    assert b"Connection: close" in headers


def test_a_regular_expression_that_takes_for_ever_is_given_up() -> None:
    answer = page(b"a" * 5_000 + b"b")
    finding = probe(answering(answer), check("http", body_regex="(a|a)+$(?<=c)"))
    assert not finding.passed


def test_smtp_wants_a_greeting_and_an_answer_to_ehlo() -> None:
    said: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220-mail.example.org\r\n220 ready\r\n")
        said.append(bytes(await stream.receive_some(1000)))
        await stream.send_all(b"250-mail.example.org\r\n250 SIZE\r\n")
        said.append(bytes(await stream.receive_some(1000)))

    assert probe(serve, check("smtp", helo="east")) == Finding(True, "greeted: 250 SIZE")
    assert said[0] == b"EHLO east\r\n"


@pytest.mark.parametrize("greeting", [b"554 no\r\n", b"hello\r\n", b"220_\r\n", b"\xff\xff\xff\n"])
def test_smtp_refuses_another_greeting(greeting: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(greeting)
        await stream.receive_some(1000)

    assert not probe(serve, check("smtp")).passed


def test_tcp_connects_or_says_why_not() -> None:
    assert probe(hanging, check("tcp")) == Finding(True, "connected")

    async def closed() -> Finding:
        with socket.socket() as unused:
            unused.bind((HOST, 0))
            return await NetworkProber().probe(check("tcp"), Target(HOST, unused.getsockname()[1]))

    assert trio.run(closed) == Finding(False, "Connection refused")


def test_a_probe_leaves_from_the_source_that_was_asked_for() -> None:
    sources: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        sources.append(stream.socket.getpeername()[0])

    async def work(target: Target) -> Finding:
        finding = await NetworkProber().probe(
            check("tcp"), Target(HOST, target.port, source="127.0.0.77")
        )
        await trio.sleep(0.05)
        return finding

    at_a_server(serve, work)
    assert sources == ["127.0.0.77"]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for www.example.org that signs itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "www.example.org")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("www.example.org"),
                    x509.IPAddress(ipaddress.ip_address(HOST)),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def over_tls(certificate: Path, names: list[str | None]) -> Serve:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def note(_: ssl.SSLSocket | ssl.SSLObject, name: str | None, __: ssl.SSLSocket) -> None:
        names.append(name)

    context.set_servername_callback(note)

    async def serve(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True)
        await secured.receive_some(10_000)
        await secured.send_all(page(b"all well"))

    return serve


@pytest.mark.parametrize(
    ("keys", "name", "passed"),
    [
        ({"host": "www.example.org:8443"}, "www.example.org", True),
        ({}, None, True),
        ({"host": "other", "sni": "www.example.org"}, "www.example.org", True),
        ({"host": "other.example.org"}, "other.example.org", False),
        ({"host": "other.example.org", "verify": False}, "other.example.org", True),
    ],
)
def test_https_checks_the_certificate_for_the_name_that_it_asks_for(
    certificate: Path, keys: dict[str, object], name: str | None, passed: bool
) -> None:
    names: list[str | None] = []
    trust = {} if "verify" in keys else {"ca_file": str(certificate)}
    finding = probe(over_tls(certificate, names), check("https", body="well", **keys, **trust))
    assert (finding.passed, names) == (passed, [name])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshakes_are_worked_on_in_threads(certificate: Path, version: ssl.TLSVersion) -> None:
    """What a server may make them cost is not for the loop; before 1.3 any answer may be one."""
    threads: list[tuple[str, int]] = []

    class NotedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            threads.append(("handshake", threading.get_ident()))
            super().do_handshake()

        def read(self, length: int = 1024) -> bytes:  # type: ignore[override]
            threads.append(("read", threading.get_ident()))
            return super().read(length)

    async def work(target: Target) -> None:
        context = ssl.create_default_context(cafile=str(certificate))
        context.sslobject_class = NotedObject
        context.maximum_version = version
        stream = await trio.open_tcp_stream(*target.end)
        tls = Tls(context, trio.Lock(), trio.CapacityLimiter(1))
        secured = SecuredStream(stream, tls, "www.example.org", 100_000)
        await secured.do_handshake()
        await secured.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert b"all well" in await secured.receive_some(10_000)
        await stream.aclose()

    at_a_server(over_tls(certificate, []), work)
    own = threading.get_ident()
    elsewhere = {what for what, thread in threads if thread != own}
    assert elsewhere == (
        {"handshake"} if version is ssl.TLSVersion.TLSv1_3 else {"handshake", "read"}
    )
    # What reads little is done here.
    assert {what for what, thread in threads if thread == own} == {"read"}


def test_tls_reads_no_more_than_its_limit(certificate: Path) -> None:
    """The server's certificate alone is longer than what is left here."""

    async def work(target: Target) -> None:
        tls = Tls(ssl.create_default_context(), trio.Lock(), trio.CapacityLimiter(1))
        stream = await trio.open_tcp_stream(*target.end)
        secured = SecuredStream(stream, tls, "www.example.org", 100 - OVERHEAD_BYTES_MAX)
        with pytest.raises(ssl.SSLError, match="more than the limit"):
            await secured.do_handshake()
        await stream.aclose()

    at_a_server(over_tls(certificate, []), work)


@pytest.mark.parametrize("kind", ["https", "http", "tcp", "ping", "script"])
def test_probes_leave_no_cycles_for_the_collector(certificate: Path, kind: str) -> None:
    """While a connection table is large nobody collects them."""
    keys: dict[str, dict[str, object]] = {
        "https": {"verify": False, "body": "well"},
        "http": {"body": "well"},
        "script": {"command": ["/bin/true"]},
    }
    what = check(kind, **keys.get(kind, {}))
    serve = over_tls(certificate, []) if kind == "https" else answering(page(b"all well"))

    async def work(target: Target) -> None:
        if kind == "ping":
            target = Target(HOST)
        prober = NetworkProber()
        await prober.prepare([what], [])
        for _ in range(3):
            finding = await prober.probe(what, target)
            assert finding.passed, finding
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            await prober.probe(what, target)
            gc.collect()
            # The server's end, which is of this process as well, may leave what it likes.
            left = [
                type(thing).__name__
                for thing in gc.garbage
                if type(thing).__module__.startswith("lvsha.")
                or (isinstance(thing, ssl.SSLObject) and not thing.server_side)
            ]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert left == []

    at_a_server(serve, work)


def test_an_exception_that_nobody_thought_of_is_a_finding() -> None:
    """Here from a name that the pair file would not let in; the node must not die of it."""
    what = check("https").model_copy(update={"sni": "a..b"})
    with structlog.testing.capture_logs() as lines:
        finding = probe(closing, what)
    assert not finding.passed
    assert finding.reason.startswith("this node could not check: UnicodeError: ")
    (line,) = lines
    assert line["event"] == "a probe raised an exception"
    assert line["type"] == "https"
    assert isinstance(line["exc_info"], UnicodeError)


def test_an_exception_is_a_finding_when_the_time_is_up_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(_: Target) -> Finding:
        try:
            return await trio.sleep_forever()
        finally:
            raise RecursionError("too deep")

    monkeypatch.setattr("lvsha.health.prober.probe_tcp", fail)
    finding = probe(hanging, check("tcp", timeout=TIMEOUT))
    assert finding == Finding(False, "this node could not check: RecursionError: too deep")


def test_https_does_not_trust_strangers(certificate: Path) -> None:
    finding = probe(over_tls(certificate, []), check("https", host="www.example.org"))
    assert finding == Finding(False, "TLS: self-signed certificate")


def test_a_file_that_holds_no_certificate_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigError, match="ca_file"):
            trio.run(NetworkProber().prepare, [check("https", ca_file=str(tmp_path / name))], [])


# Datagrams

Answer = Callable[[bytes], list[bytes]]


def ask_datagrams(answer: Answer, what: Check, over_tcp: Serve = hanging) -> Finding:
    """Probe a server that answers each datagram with some."""

    async def work(target: Target) -> Finding:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            await opened.bind(target.end)
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    while True:
                        data, client = await opened.recvfrom(65_535)
                        for each in answer(data):
                            await opened.sendto(each, client)

                nursery.start_soon(serve)
                finding = await NetworkProber().probe(what, target)
                nursery.cancel_scope.cancel()
        return finding

    return at_a_server(over_tcp, work)


def dns_answer(query: bytes, *, address: str = "192.0.2.1", cut: bool = False) -> bytes:
    response = dns.message.make_response(dns.message.from_wire(query))
    if cut:
        response.flags |= dns.flags.TC
    else:
        response.answer.append(dns.rrset.from_text("www.example.org.", 60, "IN", "A", address))
    return response.to_wire()


NAME = {"query": "www.example.org", "record": "A"}


def test_dns_looks_at_rcode_and_answer() -> None:
    def serve(query: bytes) -> list[bytes]:
        return [dns_answer(query)]

    assert ask_datagrams(serve, check("dns", **NAME)) == Finding(True, "rcode NOERROR")
    assert ask_datagrams(serve, check("dns", **NAME, answer="192.0.2.1")).passed
    assert ask_datagrams(serve, check("dns", **NAME, answer="192.0.2.2")) == Finding(
        False, "answered 192.0.2.1, expected 192.0.2.2"
    )
    assert ask_datagrams(serve, check("dns", **NAME, rcode="NXDOMAIN")) == Finding(
        False, "rcode NOERROR, expected NXDOMAIN"
    )


def test_dns_asks_again_by_tcp_when_the_answer_is_cut_short() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        data = await stream.receive_some(1000)
        whole = dns_answer(bytes(data[2:]))
        await stream.send_all(len(whole).to_bytes(2) + whole)

    what = check("dns", **NAME, answer="192.0.2.1")
    assert ask_datagrams(lambda query: [dns_answer(query, cut=True)], what, serve).passed
    assert not ask_datagrams(lambda query: [dns_answer(query, cut=True)], what, closing).passed


def test_dns_passes_over_what_nobody_asked_for_but_not_for_ever() -> None:
    def few(query: bytes) -> list[bytes]:
        return [b"", b"\xff" * 100, query, b"\0\0" + dns_answer(query)[2:], dns_answer(query)]

    assert ask_datagrams(few, check("dns", **NAME, answer="192.0.2.1")).passed
    many = ask_datagrams(lambda _: [b"nonsense"] * 100, check("dns", **NAME))
    assert many == Finding(False, "only answers that nobody asked for")


def pointing_dns_answer(query: bytes, records: int) -> bytes:
    """Names that all point at one of 126 labels, which takes dnspython seconds."""
    long = b"\1a" * 126 + b"\0"
    first = b"\0" + struct.pack("!HHIH", 2, 1, 0, len(long)) + long
    where = struct.pack("!H", 0xC000 | (len(query) + 11))
    others = (where + struct.pack("!HHIH", 2, 1, n, 2) + where for n in range(records - 1))
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, records, 0, 0)
    return header + query[12:] + first + b"".join(others)


NAMES = {"query": "www.example.org", "record": "NS", "answer": "ns.example.org."}


def test_dns_reads_no_answer_that_is_longer_than_the_limit() -> None:
    def serve(query: bytes) -> list[bytes]:
        return [pointing_dns_answer(query, 4_000)]

    assert ask_datagrams(serve, check("dns", **NAMES)) == Finding(
        False, f"an answer of more than {DNS_UDP_BYTES_MAX} bytes"
    )

    async def by_tcp(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await flood(stream, b"\xff\xff", b"x" * 65_535)

    finding = ask_datagrams(
        lambda query: [dns_answer(query, cut=True)], check("dns", **NAME), by_tcp
    )
    assert finding == Finding(False, f"an answer of 65535 bytes, more than {DNS_TCP_BYTES_MAX}")


@pytest.mark.parametrize("by_tcp", [False, True])
def test_dns_does_not_follow_all_names_of_a_hostile_answer(by_tcp: bool) -> None:
    def serve(query: bytes) -> list[bytes]:
        return [dns_answer(query, cut=True) if by_tcp else pointing_dns_answer(query, 200)]

    async def serve_stream(stream: trio.SocketStream) -> None:
        answer = pointing_dns_answer(bytes(await stream.receive_some(1000))[2:], 250)
        await stream.send_all(len(answer).to_bytes(2) + answer)

    finding = ask_datagrams(serve, check("dns", **NAMES), serve_stream)
    assert finding == Finding(False, "the answer cannot be read: more than 4096 labels")


def test_dns_takes_an_answer_however_it_is_written() -> None:
    def serve(query: bytes) -> list[bytes]:
        response = dns.message.make_response(dns.message.from_wire(query))
        name = "WWW.example.org."
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "NS", "NS.example.org."))
        return [response.to_wire().replace(b"\3www", b"\3WwW", 1)]

    assert ask_datagrams(serve, check("dns", **NAMES)).passed
    assert ask_datagrams(serve, check("dns", **{**NAMES, "answer": "other.example.org"})) == (
        Finding(False, "answered ns.example.org., expected other.example.org")
    )


def test_udp_looks_for_what_is_expected_and_takes_silence_where_nothing_is() -> None:
    def echo(data: bytes) -> list[bytes]:
        return [data]

    def silent(_: bytes) -> list[bytes]:
        return []

    assert ask_datagrams(echo, check("udp", payload="ping", expect="in")).passed
    assert not ask_datagrams(echo, check("udp", payload="ping", expect="pong")).passed
    assert ask_datagrams(silent, check("udp", timeout=TIMEOUT)) == Finding(
        True, f"no error within {TIMEOUT} s"
    )
    assert not ask_datagrams(silent, check("udp", timeout=TIMEOUT, require_answer=True)).passed


def test_udp_takes_an_icmp_error_for_a_failure() -> None:
    async def closed() -> Finding:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind((HOST, 0))
            port = unused.getsockname()[1]
        return await NetworkProber().probe(check("udp"), Target(HOST, port))

    assert trio.run(closed) == Finding(False, "Connection refused")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for raw sockets")
@pytest.mark.parametrize("address", [HOST, "::1"])
def test_an_echo_comes_back(address: str) -> None:
    async def ping() -> Finding:
        return await NetworkProber().probe(check("ping"), Target(address))

    finding = trio.run(ping)
    assert finding.passed
    assert finding.reason.startswith("echoed within")


# Scripts


def run_script(text: str, **keys: object) -> Finding:
    me = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
    what = check("script", **{"command": ["/bin/sh", "-c", text], "user": me, **keys})

    async def run() -> Finding:
        prober = NetworkProber()
        await prober.prepare([what], [])
        return await prober.probe(what, Target("192.0.2.7", 80))

    before = open_files()
    finding = trio.run(run)
    assert open_files() <= before
    return finding


@pytest.mark.parametrize(
    ("status", "dynamic", "expected"),
    [
        (0, True, Finding(True, "exit status 0")),
        (1, True, Finding(False, "exit status 1")),
        (2, True, Finding(True, "asks for weight 0", 0)),
        (255, True, Finding(True, "asks for weight 253", 253)),
        (2, False, Finding(False, "exit status 2")),
    ],
)
def test_a_script_says_by_its_exit_status_how_the_server_is(
    status: int, dynamic: bool, expected: Finding
) -> None:
    assert run_script(f"exit {status}", dynamic=dynamic) == expected


def test_a_script_is_told_about_the_server_and_nothing_else() -> None:
    assert run_script('[ "$LVSHA_ADDRESS:$LVSHA_PORT" = 192.0.2.7:80 ] && [ -z "$HOME" ]').passed


def test_a_script_that_is_not_there_or_ends_by_a_signal_is_a_failure() -> None:
    assert run_script("", command=["/no/such/program"]) == Finding(
        False, "cannot be run: No such file or directory"
    )
    assert run_script("kill -9 $$") == Finding(False, "ended by signal 9")


@pytest.mark.parametrize("user", [None, "root"])
def test_a_script_that_is_not_there_asks_for_no_weight(user: str | None) -> None:
    if user is not None and os.geteuid():
        pytest.skip("needs root")
    finding = run_script("", command=["/no/such/program"], dynamic=True, user=user)
    assert (finding.passed, finding.weight) == (False, None)


def test_a_command_that_is_not_there_did_not_go_well() -> None:
    async def run() -> str | None:
        prober = NetworkProber()
        await prober.prepare([], [None])
        return await prober.run(None, ["/no/such/program"], {})

    assert trio.run(run) == "cannot be run: No such file or directory"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("session", ["", "setsid"])
@pytest.mark.parametrize("last", ["sleep 1000", "exit 0"])
def test_a_script_is_ended_with_all_that_it_has_started(
    tmp_path: Path, last: str, session: str
) -> None:
    """One that hangs, or leaves, with a child that ignores signals, or has left its session."""
    pid_file = tmp_path / "pid"
    child = f"trap '' TERM HUP INT; echo $$ > {pid_file}; while :; do sleep 0.1; done"
    started = f"until [ -s {pid_file} ]; do sleep 0.01; done"
    text = f'{session} /bin/sh -c "{child.replace("$", chr(92) + "$")}" & {started}; {last}'
    finding = run_script(text, timeout=TIMEOUT)
    assert finding.passed == (last == "exit 0")
    # It was told to end; the kernel may take a moment.
    until(lambda: not is_alive(int(pid_file.read_text())))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_script_runs_as_its_user() -> None:
    assert run_script('[ "$(id -un)" = nobody ]', user="nobody").passed
    assert run_script('[ "$(id -un)" = nobody ]', user=None).passed
    assert run_script('grep -qE "^CapEff:.0+$" /proc/self/status', user=None).passed
    assert run_script('[ "$(id -un)" = root ]', user="root").passed


def test_a_user_who_is_not_there_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="nosuchuser"):
        run_script("", user="nosuchuser")
