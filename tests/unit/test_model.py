from zlib import crc32

import pytest

from lvsha.model import (
    BUCKETS,
    ConnectionFlag,
    ConnectionRecord,
    ForwardMethod,
    bucket_of,
    connection_key,
    format_address,
    format_endpoint,
    parse_address,
    template_key,
    virtual_of,
)


def test_an_ipv4_key_is_fourteen_bytes_in_the_order_of_the_packet() -> None:
    key = connection_key(6, b"\x0a\x00\x00\x01", 0x1234, b"\xc0\x00\x02\x01", 80)
    assert key == bytes.fromhex("04060a000001c000020112340050")


def test_an_ipv6_key_is_thirty_eight_bytes() -> None:
    key = connection_key(17, bytes(16), 1, b"\xff" * 16, 2)
    assert key == b"\x06\x11" + bytes(16) + b"\xff" * 16 + b"\x00\x01\x00\x02"


def test_a_record_has_the_key_of_its_request_direction() -> None:
    record = ConnectionRecord.between(
        6, b"\x0a\0\0\1", 1, b"\x0a\0\0\2", 2, b"\x0a\0\0\3", 3, ForwardMethod.NAT, 1, 0, 900
    )
    assert record.key == connection_key(6, b"\x0a\0\0\1", 1, b"\x0a\0\0\2", 2)


V4_KEY = connection_key(6, b"\x0a\0\0\1", 0x1234, b"\x0a\0\0\2", 80)
V6_KEY = connection_key(17, bytes(15) + b"\1", 0x12FF, bytes(15) + b"\2", 53)


@pytest.mark.parametrize(
    ("key", "virtual"), [(V4_KEY, (b"\x0a\0\0\2", 80)), (V6_KEY, (bytes(15) + b"\2", 53))]
)
def test_a_key_tells_the_virtual_end(key: bytes, virtual: tuple[bytes, int]) -> None:
    assert virtual_of(key) == virtual


def test_a_templates_key_is_no_connections_and_ends_with_what_was_found() -> None:
    key = template_key(V4_KEY, b"call@host")
    assert key == b"\x84" + V4_KEY[1:] + b"call@host"
    assert template_key(V4_KEY) == key[:14]
    record = ConnectionRecord(key, b"\x0a\0\0\3", 80, ForwardMethod.NAT, 0, 0x1000, 300)
    assert record.is_template
    assert not record._replace(key=V4_KEY).is_template


def test_a_connections_bucket_is_a_sum_of_two_bytes_and_a_templates_a_remainder() -> None:
    assert bucket_of(V4_KEY) == 0x34 + 1
    assert bucket_of(V6_KEY) == 0xFF
    highest = connection_key(6, b"\xff" * 4, 0xFFFF, bytes(4), 80)
    assert bucket_of(highest) == BUCKETS - 1
    assert bucket_of(template_key(V4_KEY)) == crc32(template_key(V4_KEY)) % BUCKETS
    calls = {bucket_of(template_key(V4_KEY, b"call-%d" % n)) for n in range(5000)}
    assert calls == set(range(BUCKETS))


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "fe80::1"])
def test_addresses_survive_the_way_to_bytes_and_back(text: str) -> None:
    assert format_address(parse_address(text)) == text


def test_what_is_no_address_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="address"):
        parse_address("192.0.2.256")


def test_endpoints_are_written_as_ipvsadm_writes_them() -> None:
    assert format_endpoint(parse_address("192.0.2.1"), 80) == "192.0.2.1:80"
    assert format_endpoint(parse_address("2001:db8::1"), 80) == "[2001:db8::1]:80"


def test_numbers_are_the_kernels() -> None:
    assert [int(method) for method in ForwardMethod] == [0, 2, 3, 4]
    assert (ConnectionFlag.SYNC, ConnectionFlag.NO_OUTPUT, ConnectionFlag.INACTIVE) == (
        0x20,
        0x80,
        0x100,
    )
