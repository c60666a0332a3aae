import struct

import pytest

from lvsha.errors import WireError
from lvsha.wire import vnet


def test_fields_stand_where_the_kernel_puts_them() -> None:
    data = struct.pack("=BBHHHH", 1, 4, 66, 1448, 34, 16)
    header = vnet.parse(data)
    assert header == vnet.VnetHeader(vnet.NEEDS_CHECKSUM, vnet.GSO_TCPV6, 66, 1448, 34, 16)
    assert vnet.emit(header) == data


def test_an_offset_skips_what_comes_before() -> None:
    assert vnet.parse(b"\xa5" * 3 + vnet.NOTHING + b"\xa5", 3) == vnet.VnetHeader()


@pytest.mark.parametrize("length", range(vnet.LENGTH_BYTES))
def test_a_header_cut_short_is_a_wire_error(length: int) -> None:
    with pytest.raises(WireError):
        vnet.parse(bytes(length))


def test_an_empty_header_is_ten_zeros() -> None:
    assert vnet.emit(vnet.VnetHeader()) == vnet.NOTHING == bytes(10)
