"""What holds of the judgement for all messages: an answer, of a fixed set, and no exception."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.failover.reception import Heard, OtherRouter, ReceivedMessage, Reception, Refused
from lvsha.wire import checksum, vrrp, vrrp_versions

OWN, PEER, STRANGER = (bytes((10, 0, 0, last)) for last in (5, 9, 66))
OWN6, PEER6, STRANGER6 = (bytes.fromhex("fe80" + "00" * 13) + bytes((n,)) for n in (5, 9, 66))
VRID = 7
COUNTERS = {
    f"refused_{cause}"
    for cause in (
        *("length", "version", "kind", "id", "count", "interval", "checksum", "authentication"),
        *("own", "stranger", "destination", "hop_limit"),
    )
}


@st.composite
def situations(draw: st.DrawFn) -> tuple[Reception, ReceivedMessage, bool]:
    version = draw(st.sampled_from([2, 3]))
    is_ipv6 = version == 3 and draw(st.booleans())
    own, peer, stranger = (OWN6, PEER6, STRANGER6) if is_ipv6 else (OWN, PEER, STRANGER)
    group = vrrp.GROUP_IPv6 if is_ipv6 else vrrp.GROUP_IPv4
    unicast = draw(st.booleans())
    virtual = bytes(len(own))
    reception = Reception(
        version=version,
        vrid=VRID,
        interval_cs=100,
        source=own,
        destinations=(peer,) if unicast else (group,),
        addresses=(virtual,),
    )
    source = draw(st.sampled_from([peer, peer, stranger, own]))
    destination = draw(st.sampled_from([group, own]))
    message = bytearray(
        vrrp_versions.emit(
            vrrp.Advertisement(VRID, 200, 100, (virtual,), version),
            source=source,
            destination=destination,
            pseudo_header=draw(st.booleans()),
        )
    )
    for at, value in draw(
        st.dictionaries(st.integers(0, 11), st.integers(0, 255), max_size=3)
    ).items():
        message[at] = value
    if draw(st.booleans()):
        message[6:8] = bytes(2)
        message[6:8] = checksum.checksum(message).to_bytes(2)
    cut = draw(st.none() | st.none() | st.integers(0, len(message)))
    hop_limit = draw(st.sampled_from([255, 255, 254, 1]))
    allowed = {peer} if unicast else {peer, stranger}
    fits = (
        source in allowed
        and destination == (own if unicast else group)
        and hop_limit == vrrp.HOP_LIMIT
    )
    return reception, ReceivedMessage(bytes(message[:cut]), source, destination, hop_limit), fits


@settings(max_examples=600)
@given(situations())
def test_every_message_has_an_answer_and_only_fitting_ones_are_heard(
    situation: tuple[Reception, ReceivedMessage, bool],
) -> None:
    reception, received, fits = situation
    match reception.judge(received):
        case Refused(counter):
            assert counter in COUNTERS
        case OtherRouter():
            assert received.message[1] not in {0, VRID}
        case Heard(advertisement):
            assert fits
            assert advertisement.vrid == VRID


@given(st.binary(max_size=80), st.sampled_from([2, 3]))
def test_bytes_that_are_no_message_are_refused_or_of_others(message: bytes, version: int) -> None:
    reception = Reception(
        version=version,
        vrid=VRID,
        interval_cs=100,
        source=OWN,
        destinations=(vrrp.GROUP_IPv4,),
        addresses=(bytes(4),),
    )
    answer = reception.judge(ReceivedMessage(message, PEER, vrrp.GROUP_IPv4, 255))
    assert isinstance(answer, Refused | OtherRouter) or len(message) >= vrrp.HEADER_BYTES
