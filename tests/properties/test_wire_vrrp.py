"""What holds of the VRRP advertisement for all values and all bytes."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from lvsha.errors import WireError
from lvsha.model import Protocol
from lvsha.wire import checksum, vrrp, vrrp2

families = st.sampled_from([4, 16])


@st.composite
def situations(draw: st.DrawFn) -> tuple[vrrp.Advertisement, bytes, bytes]:
    size = draw(families)
    address = st.binary(min_size=size, max_size=size)
    advertisement = vrrp.Advertisement(
        draw(st.integers(1, 255)),
        draw(st.integers(0, 255)),
        draw(st.integers(1, 4095)),
        tuple(draw(st.lists(address, min_size=1, max_size=8))),
    )
    return advertisement, draw(address), draw(address)


@given(situations(), st.booleans(), st.binary(max_size=40))
def test_emit_and_parse_are_a_pair(
    situation: tuple[vrrp.Advertisement, bytes, bytes], pseudo_header: bool, padding: bytes
) -> None:
    advertisement, source, destination = situation
    message = vrrp.emit(
        advertisement, source=source, destination=destination, pseudo_header=pseudo_header
    )
    parsed = vrrp.parse(message + padding, source=source, destination=destination)
    assert dataclasses.replace(parsed, pseudo_header=False) == advertisement
    # The two conventions agree only where the pseudo-header sums to nothing.
    pseudo = checksum.pseudo_header_sum(source, destination, Protocol.VRRP, len(message))
    if len(source) == 16:
        assert parsed.pseudo_header
    elif pseudo % checksum.MODULUS:
        assert parsed.pseudo_header is pseudo_header


@given(situations())
def test_cut_short_at_every_byte_it_is_refused(
    situation: tuple[vrrp.Advertisement, bytes, bytes],
) -> None:
    advertisement, source, destination = situation
    message = vrrp.emit(advertisement, source=source, destination=destination, pseudo_header=True)
    for length in range(len(message)):
        try:
            vrrp.parse(message[:length], source=source, destination=destination)
        except WireError:
            continue
        raise AssertionError(f"{length} of {len(message)} bytes were accepted")


@given(st.binary(max_size=80), families, st.booleans())
def test_only_wire_errors_escape(message: bytes, size: int, repair: bool) -> None:
    source = bytes(range(1, size + 1))
    if repair and len(message) >= 8:
        blank = b"\x31" + message[1:6] + b"\0\0" + message[8:]
        message = blank[:6] + checksum.checksum(blank).to_bytes(2) + blank[8:]
    try:
        vrrp.parse(message, source=source, destination=source)
    except WireError:
        return


old_advertisements = st.builds(
    vrrp2.Advertisement,
    st.integers(1, 255),
    st.integers(0, 255),
    st.integers(1, 255),
    st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=8).map(tuple),
)


@given(old_advertisements, st.binary(max_size=40))
def test_emit_and_parse_of_version_2_are_a_pair(
    advertisement: vrrp2.Advertisement, padding: bytes
) -> None:
    assert vrrp2.parse(vrrp2.emit(advertisement) + padding) == advertisement


@given(old_advertisements)
def test_version_2_cut_short_at_every_byte_is_refused(advertisement: vrrp2.Advertisement) -> None:
    message = vrrp2.emit(advertisement)
    for length in range(len(message)):
        try:
            vrrp2.parse(message[:length])
        except WireError:
            continue
        raise AssertionError(f"{length} of {len(message)} bytes were accepted")


@given(st.binary(max_size=80), st.booleans())
def test_only_wire_errors_escape_from_version_2(message: bytes, repair: bool) -> None:
    if repair and len(message) >= 8:
        blank = b"\x21" + message[1:6] + b"\0\0" + message[8:]
        message = blank[:6] + checksum.checksum(blank).to_bytes(2) + blank[8:]
    try:
        vrrp2.parse(message)
    except WireError:
        return
