"""What a virtual router makes of each message: heard, told as different, or refused by cause."""

import pytest

from lvsha.failover.reception import (
    Heard,
    OtherRouter,
    ReceivedMessage,
    Reception,
    Refused,
    is_multicast,
)
from lvsha.model import parse_address
from lvsha.wire import checksum, vrrp, vrrp_versions

OWN = parse_address("10.0.0.5")
PEER = parse_address("10.0.0.9")
STRANGER = parse_address("10.0.0.66")
VIRTUAL = parse_address("192.0.2.10")
OWN6, PEER6 = parse_address("fe80::5"), parse_address("fe80::9")
VIRTUAL6 = parse_address("2001:db8::10")
VRID = 7


def reception(
    version: int = 3,
    peers: tuple[bytes, ...] = (),
    hop_limit: int = 255,
    speakers: tuple[bytes, ...] = (),
) -> Reception:
    return Reception(
        version=version,
        vrid=VRID,
        interval_cs=100,
        source=OWN,
        destinations=peers or (vrrp.GROUP_IPv4,),
        addresses=(VIRTUAL,),
        hop_limit_min=hop_limit,
        speakers=speakers,
    )


def message(version: int = 3, **changes: int) -> bytes:
    """An advertisement with bytes overwritten by their offset, and a right checksum."""
    plain = bytearray(
        vrrp_versions.emit(
            vrrp.Advertisement(VRID, 200, 100, (VIRTUAL,), version),
            source=PEER,
            destination=vrrp.GROUP_IPv4,
            pseudo_header=False,
        )
    )
    for name, value in changes.items():
        plain[int(name.removeprefix("byte"))] = value
    plain[6:8] = bytes(2)
    plain[6:8] = checksum.checksum(plain).to_bytes(2)
    return bytes(plain)


def came(
    data: bytes,
    source: bytes = PEER,
    destination: bytes = vrrp.GROUP_IPv4,
    hop_limit: int = 255,
) -> ReceivedMessage:
    return ReceivedMessage(data, source, destination, hop_limit)


@pytest.mark.parametrize("version", [2, 3])
def test_a_right_message_is_heard_as_it_was_sent(version: int) -> None:
    heard = reception(version).judge(came(message(version)))
    assert isinstance(heard, Heard)
    assert heard.advertisement == vrrp.Advertisement(VRID, 200, 100, (VIRTUAL,), version)
    assert heard.differences == ()


@pytest.mark.parametrize(
    ("version", "received", "counter"),
    [
        (3, came(b""), "refused_length"),
        (3, came(message()[:7]), "refused_length"),
        (3, came(message(byte3=2)), "refused_length"),
        (2, came(message(2, byte3=2)), "refused_length"),
        (3, came(message(2)), "refused_version"),
        (2, came(message(3)), "refused_version"),
        (3, came(message(byte0=0x32)), "refused_kind"),
        (2, came(message(2, byte0=0x22)), "refused_kind"),
        (3, came(message(byte1=0)), "refused_id"),
        (2, came(message(2, byte1=0)), "refused_id"),
        (3, came(message(byte3=0)), "refused_count"),
        (2, came(message(2, byte3=0)), "refused_count"),
        (3, came(message(byte4=0, byte5=0)), "refused_interval"),
        (2, came(message(2, byte5=0)), "refused_interval"),
        (2, came(message(2, byte5=2)), "refused_interval"),
        (2, came(message(2, byte4=1)), "refused_authentication"),
        (3, came(message()[:6] + b"ab" + message()[8:]), "refused_checksum"),
        (2, came(message(2)[:6] + b"ab" + message(2)[8:]), "refused_checksum"),
        (3, came(message(), hop_limit=254), "refused_hop_limit"),
        (2, came(message(2), hop_limit=1), "refused_hop_limit"),
        (3, came(message(), source=OWN), "refused_own"),
        (3, came(message(), destination=OWN), "refused_destination"),
    ],
)
def test_a_wrong_message_is_refused_by_its_cause(
    version: int, received: ReceivedMessage, counter: str
) -> None:
    refused = reception(version).judge(received)
    assert isinstance(refused, Refused)
    assert refused.counter == counter


def test_what_is_wrong_is_told_with_both_sides_of_it() -> None:
    refused = reception(3).judge(came(message(2)))
    assert isinstance(refused, Refused)
    assert (refused.details["theirs"], refused.details["ours"]) == (2, 3)
    refused = reception(2).judge(came(message(2, byte5=3)))
    assert isinstance(refused, Refused)
    assert refused.details == {"theirs_seconds": 3.0, "ours_seconds": 1.0}


def test_messages_of_another_router_are_its_own_affair_whatever_is_wrong_with_them() -> None:
    for received in (
        came(message(byte1=8)),
        came(message(byte1=8), source=STRANGER, hop_limit=3),
        came(message(2, byte1=8)[:4]),
    ):
        assert isinstance(reception().judge(received), OtherRouter)


def test_version_3_tells_another_interval_and_other_addresses() -> None:
    heard = reception().judge(came(message(byte5=50, byte11=99)))
    assert isinstance(heard, Heard)
    assert [one.counter for one in heard.differences] == [
        "address_list_differs",
        "interval_differs",
    ]


def test_peers_are_heard_and_strangers_and_the_group_are_not() -> None:
    unicast = reception(peers=(PEER, parse_address("10.0.0.8")))
    assert isinstance(unicast.judge(came(message(), destination=OWN)), Heard)
    for received, counter in (
        (came(message(), source=STRANGER, destination=OWN), "refused_stranger"),
        (came(message(), source=OWN, destination=OWN), "refused_own"),
        (came(message()), "refused_destination"),
        (came(message(), destination=OWN, hop_limit=254), "refused_hop_limit"),
    ):
        refused = unicast.judge(received)
        assert isinstance(refused, Refused)
        assert refused.counter == counter


def test_on_the_group_only_speakers_are_heard_if_they_are_listed() -> None:
    assert isinstance(reception().judge(came(message(), source=STRANGER)), Heard)
    listed = reception(speakers=(OWN, PEER))
    assert isinstance(listed.judge(came(message())), Heard)
    refused = listed.judge(came(message(), source=STRANGER))
    assert isinstance(refused, Refused)
    assert refused.counter == "refused_stranger"


def test_peers_behind_routers_may_have_fewer_hops_left() -> None:
    far = reception(peers=(PEER,), hop_limit=250)
    assert isinstance(far.judge(came(message(), destination=OWN, hop_limit=250)), Heard)
    assert isinstance(far.judge(came(message(), destination=OWN, hop_limit=249)), Refused)


def test_the_checksum_of_a_peer_over_ipv6_covers_its_own_destination() -> None:
    unicast = Reception(
        version=3,
        vrid=VRID,
        interval_cs=100,
        source=OWN6,
        destinations=(PEER6,),
        addresses=(VIRTUAL6,),
    )
    sent = vrrp.Advertisement(VRID, 200, 100, (VIRTUAL6,))
    for destination, counter in ((OWN6, None), (vrrp.GROUP_IPv6, "refused_checksum")):
        data = vrrp.emit(sent, source=PEER6, destination=destination, pseudo_header=True)
        judged = unicast.judge(came(data, PEER6, OWN6))
        assert (judged.counter if isinstance(judged, Refused) else None) == counter


def test_groups_are_told_from_addresses() -> None:
    assert is_multicast(vrrp.GROUP_IPv4)
    assert is_multicast(vrrp.GROUP_IPv6)
    for address in ("10.0.0.1", "240.0.0.1", "223.255.255.255", "fe80::1"):
        assert not is_multicast(parse_address(address))
