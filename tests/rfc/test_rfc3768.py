"""RFC 3768 (VRRP version 2): where it says something else than RFC 9568.

The checks of single messages by cause are in tests/unit/test_reception.py.
"""

import pytest

from lvsha.failover.election import Election
from lvsha.model import VrrpState, parse_address
from lvsha.wire import checksum, vrrp, vrrp2, vrrp_versions

OWN = parse_address("10.0.0.5")
PEER = parse_address("10.0.0.9")
VIRTUAL = parse_address("192.0.2.10")


def backup(interval: float = 1.0, priority: int = 100) -> Election:
    made = Election(
        vrid=7, priority=priority, interval=interval, preempt=True, address=OWN, version=2
    )
    made.permit_preemption(True, 0.0)
    made.start(0.0)
    return made


def heard(priority: int, interval_cs: int) -> vrrp.Advertisement:
    return vrrp.Advertisement(7, priority, interval_cs, (VIRTUAL,), 2)


def emit(advertisement: vrrp.Advertisement) -> bytes:
    return vrrp_versions.emit(
        advertisement, source=OWN, destination=vrrp.GROUP_IPv4, pseudo_header=True
    )


def test_5_3_the_layout_is_that_of_version_2() -> None:
    message = emit(heard(100, 500))
    assert message[:6] == bytes((0x21, 7, 100, 1, 0, 5))
    assert message[8:12] == VIRTUAL
    assert len(message) == 20


def test_5_3_6_authentication_is_none_and_its_data_zero() -> None:
    message = emit(heard(100, 100))
    assert message[4] == vrrp2.NO_AUTHENTICATION
    assert message[-8:] == bytes(8)


def test_5_3_8_the_checksum_covers_the_whole_message_and_no_pseudo_header() -> None:
    assert checksum.ones_complement_sum(emit(heard(100, 100))) == checksum.MODULUS


@pytest.mark.parametrize("interval", [1.0, 3.0, 255.0])
@pytest.mark.parametrize("priority", [1, 100, 254])
def test_6_1_the_skew_is_in_seconds_whatever_the_interval(interval: float, priority: int) -> None:
    made = backup(interval, priority)
    assert made.skew == (256 - priority) / 256
    assert made.deadline == 3 * interval + made.skew


def test_6_4_2_priority_zero_sets_the_timer_to_the_skew() -> None:
    made = backup(10.0)
    made.receive(heard(200, 1000), PEER, 5.0)
    made.receive(heard(0, 1000), PEER, 6.0)
    assert made.deadline == 6.0 + 156 / 256
    made.expire(6.0 + 156 / 256)
    assert made.state is VrrpState.MASTER
