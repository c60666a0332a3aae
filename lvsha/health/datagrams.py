"""Probes that send one datagram and wait: UDP, DNS and ICMP echo.

Sockets are connected, so that only the server's answers, and ICMP errors about the own
datagram, come back. An answer that is none of ours is passed over, `STRAYS_MAX` of them at
most: who sends more is not well. The time limit is the caller's.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from typing import Final

import dns.exception
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import trio

from lvsha.config_health import Check
from lvsha.errors import WireError
from lvsha.health.opinions import Finding, quoted
from lvsha.health.target import Target, a_socket, connect
from lvsha.wire.dns_response import Response
from lvsha.wire.echo import Echo, without_ip_header

STRAYS_MAX: Final = 64
DATAGRAM_BYTES_MAX: Final = 65_535
ECHO_BYTES: Final = 32
DNS_UDP_BYTES_MAX: Final = 4_096
"""A server that keeps to RFC 1035 cuts at 512 what is not asked for with EDNS."""
DNS_TCP_BYTES_MAX: Final = 16_384
_SHOWN_RECORDS_MAX: Final = 8
_SHOWN_BYTES_MAX: Final = 128
"""Of the data of records; what these read takes up to a millisecond to write."""
_LENGTH_BYTES: Final = 2

# A flood of strays must not keep the loop: each read below waits in Trio, which lets others
# run after it, and there are `STRAYS_MAX` at most.


async def probe_udp(check: Check, target: Target) -> Finding:
    """Send a payload, and wait for the answer or for an ICMP error.

    Where no answer is required, silence is good; but then the caller's time limit ends this.
    """
    expected = check.expected_octets
    with a_socket(target, socket.SOCK_DGRAM) as opened:
        await connect(opened, target)
        await opened.send(check.payload_octets)
        answer = await opened.recv(DATAGRAM_BYTES_MAX)
    if expected not in answer:
        return Finding(passed=False, reason=f"unexpected answer: {quoted(answer)}")
    return Finding(passed=True, reason=f"answered {len(answer)} bytes")


def passes_silently(check: Check) -> bool:
    """Whether no answer, and no error either, is what is expected."""
    return check.type == "udp" and not check.require_answer and not check.expected_octets


async def probe_dns(check: Check, target: Target) -> Finding:
    """Ask a question, by TCP if the answer is cut short."""
    query = dns.message.make_query(check.query, check.record).to_wire()
    with a_socket(target, socket.SOCK_DGRAM) as opened:
        await connect(opened, target)
        await opened.send(query)
        for _ in range(STRAYS_MAX):
            data = await opened.recv(DNS_UDP_BYTES_MAX + 1)
            response = Response.parse(data, query)
            if response is not None:
                break
        else:
            return Finding(passed=False, reason="only answers that nobody asked for")
    if len(data) > DNS_UDP_BYTES_MAX:
        return Finding(passed=False, reason=f"an answer of more than {DNS_UDP_BYTES_MAX} bytes")
    if response.is_truncated:
        return await _ask_by_tcp(check, target, query)
    return _judged(check, response)


async def _ask_by_tcp(check: Check, target: Target, query: bytes) -> Finding:
    with a_socket(target, socket.SOCK_STREAM) as opened:
        await connect(opened, target)
        stream = trio.SocketStream(opened)
        await stream.send_all(len(query).to_bytes(_LENGTH_BYTES) + query)
        length = int.from_bytes(await _exactly(stream, _LENGTH_BYTES))
        if length > DNS_TCP_BYTES_MAX:
            reason = f"an answer of {length} bytes, more than {DNS_TCP_BYTES_MAX}"
            return Finding(passed=False, reason=reason)
        response = Response.parse(await _exactly(stream, length), query)
    if response is None:
        return Finding(passed=False, reason="the answer by TCP is no DNS answer to the question")
    return _judged(check, response)


async def _exactly(stream: trio.SocketStream, length: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the server closes before.
    """
    data = bytearray()
    while len(data) < length:
        part = await stream.receive_some(length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _judged(check: Check, response: Response) -> Finding:
    rcode = dns.rcode.to_text(dns.rcode.Rcode(response.rcode))
    if rcode != check.rcode:
        return Finding(passed=False, reason=f"rcode {rcode}, expected {check.rcode}")
    if check.answer is None:
        return Finding(passed=True, reason=f"rcode {rcode}")
    kind = dns.rdatatype.from_text(check.record)
    try:
        records = response.records(kind)
    except WireError as error:
        return Finding(passed=False, reason=f"the answer cannot be read: {error}")
    if check.answer_octets in records:
        return Finding(passed=True, reason=f"answered {check.answer}")
    shown = quoted(", ".join(_shown(kind, records))) or "nothing"
    return Finding(passed=False, reason=f"answered {shown}, expected {check.answer}")


def _shown(kind: dns.rdatatype.RdataType, records: list[bytes]) -> Iterator[str]:
    """The first of some records, as people write them."""
    left = _SHOWN_BYTES_MAX
    for data in records[:_SHOWN_RECORDS_MAX]:
        left -= len(data)
        if left < 0:
            yield f"a record of {len(data)} bytes"
            return
        try:
            yield dns.rdata.from_wire(dns.rdataclass.IN, kind, data, 0, len(data)).to_text()
        except (dns.exception.DNSException, ValueError):
            yield "a record that cannot be read"


async def probe_ping(target: Target) -> Finding:
    """Send an echo request by a ping socket or, where these are not permitted, a raw one."""
    is_v4 = target.family == socket.AF_INET
    protocol = socket.IPPROTO_ICMP if is_v4 else socket.IPPROTO_ICMPV6
    try:
        with a_socket(target, socket.SOCK_DGRAM, protocol) as opened:
            return await _echo(opened, target, raw=False)
    except PermissionError:
        with a_socket(target, socket.SOCK_RAW, protocol) as opened:
            return await _echo(opened, target, raw=True)


async def _echo(opened: trio.socket.SocketType, target: Target, *, raw: bool) -> Finding:
    family = 4 if target.family == socket.AF_INET else 6
    request = Echo(False, os.getpid() & 0xFFFF, 1, secrets.token_bytes(ECHO_BYTES))
    await connect(opened, Target(target.address, 0, target.source))
    began = trio.current_time()
    await opened.send(request.emit(family))
    for _ in range(STRAYS_MAX):
        data = await opened.recv(DATAGRAM_BYTES_MAX)
        try:
            echo = Echo.parse(without_ip_header(data) if raw and family == 4 else data, family)
        except WireError:
            continue  # counted as a stray
        if echo is not None and echo.reply and echo.payload == request.payload:
            taken_ms = (trio.current_time() - began) * 1000
            return Finding(passed=True, reason=f"echoed within {taken_ms:.1f} ms")
    return Finding(passed=False, reason="only answers that nobody asked for")
