"""RFC 9568 (VRRP version 3): one test for each MUST that a program like lvsha can keep.

Left out, with the reason in docs/limits.md: router advertisements, and forwarding by the
kernel. What the kernel does with a virtual MAC is in tests/netns/test_virtual_mac_netns.py.
"""

import pytest
import trio
import trio.testing
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lvsha.counters import Counters
from lvsha.errors import WireError
from lvsha.failover.actions import (
    AcquireAddresses,
    Advertise,
    AnnounceAddresses,
    ReleaseAddresses,
    StateChanged,
)
from lvsha.failover.addresses import Addresses
from lvsha.failover.announcements import announcement_frames
from lvsha.failover.election import Election
from lvsha.failover.reception import ReceivedMessage
from lvsha.failover.speaker import RouterStateChanged, Speaker
from lvsha.failover.transport import frame_to_group
from lvsha.model import VrrpState, format_address, parse_address
from lvsha.wire import arp, checksum, ipv6, neighbour_discovery, vrrp

OWN = parse_address("10.0.0.5")
PEER = parse_address("10.0.0.9")
OWN6 = parse_address("fe80::5")
VIRTUAL = parse_address("192.0.2.10")
VIRTUAL6 = parse_address("2001:db8::10")
LINK_LOCAL6 = parse_address("fe80::10")
MAC = bytes.fromhex("020000000001")


class SilentTransport:
    """A network on which a test lies in wait."""

    def __init__(self, source: bytes = OWN) -> None:
        self.source = source
        self.destinations = (vrrp.GROUP_IPv4 if len(source) == 4 else vrrp.GROUP_IPv6,)
        self.counters = Counters()
        self.arrived: list[ReceivedMessage] = []
        self.sent: list[bytes] = []

    async def wait_readable(self) -> None:
        if not self.arrived:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    def receive(self) -> list[ReceivedMessage]:
        arrived, self.arrived = self.arrived, []
        return arrived

    def refresh(self) -> bool:
        return False

    def send(self, message: bytes, destination: bytes) -> None:
        assert destination in self.destinations
        self.sent.append(message)


class NoAddresses:
    def __init__(self) -> None:
        self.counters = Counters()

    async def prepare(self) -> None:
        pass

    async def acquire(self) -> bool:
        return True

    async def release(self) -> bool:
        return True

    async def refresh(self) -> bool:
        return True

    async def announce(self) -> bool:
        return True


def election(priority: int = 100, *, preempt: bool = True, interval: float = 1.0) -> Election:
    made = Election(vrid=7, priority=priority, interval=interval, preempt=preempt, address=OWN)
    made.permit_preemption(True, 0.0)
    made.start(0.0)
    return made


def master() -> Election:
    made = election()
    made.expire(made.down_interval)
    assert made.state is VrrpState.MASTER
    return made


def heard(priority: int, interval_cs: int = 100) -> vrrp.Advertisement:
    return vrrp.Advertisement(7, priority, interval_cs, (VIRTUAL,))


def message(**changes: int) -> bytes:
    """An advertisement with fields overwritten (by offset) and the checksum made right."""
    plain = bytearray(
        vrrp.emit(heard(200), source=PEER, destination=vrrp.GROUP_IPv4, pseudo_header=False)
    )
    for name, value in changes.items():
        plain[int(name.removeprefix("byte"))] = value
    plain[6:8] = bytes(2)
    plain[6:8] = checksum.checksum(plain).to_bytes(2)
    return bytes(plain)


def parse(data: bytes) -> vrrp.Advertisement:
    return vrrp.parse(data, source=PEER, destination=vrrp.GROUP_IPv4)


def speak(transport: SilentTransport, made: Election, virtual: list[bytes]) -> Speaker:
    """Let a speaker take one turn over what has arrived, and stop."""
    send, _receive = trio.open_memory_channel[RouterStateChanged](16)
    addresses: Addresses = NoAddresses()
    speaker = Speaker(
        made,
        transport,
        addresses,
        send,
        name="web",
        virtual_addresses=virtual,
        pseudo_header=False,
    )

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: speaker.run(task_status=task_status))
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(10)
            await speaker.stop()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return speaker


def unstarted(address: bytes = OWN) -> Election:
    return Election(vrid=7, priority=100, interval=1.0, preempt=True, address=address)


def from_peer(data: bytes, hop_limit: int = 255) -> ReceivedMessage:
    return ReceivedMessage(data, PEER, vrrp.GROUP_IPv4, hop_limit)


def test_5_1_1_3_messages_with_another_ttl_are_discarded() -> None:
    transport = SilentTransport()
    transport.arrived = [from_peer(message(), hop_limit=254)]
    speaker = speak(transport, unstarted(), [VIRTUAL])
    assert speaker.election.peer is None
    assert speaker.counters["refused_hop_limit"] == 1


def test_5_1_2_3_messages_with_another_hop_limit_are_discarded() -> None:
    transport = SilentTransport(OWN6)
    data = vrrp.emit(
        vrrp.Advertisement(7, 200, 100, (LINK_LOCAL6,)),
        source=LINK_LOCAL6,
        destination=vrrp.GROUP_IPv6,
        pseudo_header=True,
    )
    transport.arrived = [ReceivedMessage(data, LINK_LOCAL6, vrrp.GROUP_IPv6, 64)]
    speaker = speak(transport, unstarted(OWN6), [LINK_LOCAL6])
    assert speaker.election.peer is None


def test_5_2_2_unknown_types_are_discarded() -> None:
    for kind in (0, *range(2, 16)):
        with pytest.raises(WireError, match="no advertisement"):
            parse(message(byte0=0x30 | kind))


def test_5_2_4_priorities_are_from_1_to_255() -> None:
    for priority in (0, 256):
        with pytest.raises(AssertionError):
            Election(vrid=7, priority=priority, interval=1.0, preempt=True, address=OWN)


def test_5_2_5_erratum_8299_a_count_of_zero_is_ignored() -> None:
    with pytest.raises(WireError, match="without an address"):
        parse(message(byte3=0))


def test_5_2_6_reserved_bits_are_zero_when_sent_and_ignored_when_received() -> None:
    assert message()[4] >> 4 == 0
    assert parse(message(byte4=0xF0)) == parse(message())


def test_5_2_8_the_checksum_covers_the_message_alone_over_ipv4() -> None:
    plain = vrrp.emit(heard(1), source=OWN, destination=vrrp.GROUP_IPv4, pseudo_header=False)
    assert checksum.ones_complement_sum(plain) == checksum.MODULUS


def test_5_2_8_a_wrong_checksum_is_discarded() -> None:
    wrong = bytearray(message())
    wrong[7] ^= 1
    with pytest.raises(WireError, match="checksum"):
        parse(bytes(wrong))


def test_5_2_9_the_first_ipv6_address_is_link_local() -> None:
    transport = SilentTransport(OWN6)
    speak(transport, unstarted(OWN6), [VIRTUAL6, LINK_LOCAL6])
    sent = vrrp.parse(transport.sent[0], source=OWN6, destination=vrrp.GROUP_IPv6)
    assert sent.addresses == (LINK_LOCAL6, VIRTUAL6)


def test_5_2_9_addresses_are_of_the_family_of_the_packet() -> None:
    transport = SilentTransport()
    speak(transport, unstarted(), [VIRTUAL, VIRTUAL6])
    sent = vrrp.parse(transport.sent[0], source=OWN, destination=vrrp.GROUP_IPv4)
    assert sent.addresses == (VIRTUAL,)


def test_6_1_skew_and_down_interval() -> None:
    made = election(priority=100)
    made.receive(heard(200, interval_cs=250), PEER, 0.0)
    assert made.skew == 156 * 2.5 / 256
    assert made.down_interval == 3 * 2.5 + made.skew


def test_6_4_1_a_router_that_is_not_the_owner_starts_as_backup() -> None:
    made = unstarted()
    assert made.start(5.0) == (StateChanged(VrrpState.INIT, VrrpState.BACKUP, "started"),)
    assert made.deadline == 5.0 + made.down_interval


def owner(*, preempt: bool = True, permitted: bool = True) -> Election:
    made = Election(vrid=7, priority=255, interval=1.0, preempt=preempt, address=OWN)
    made.permit_preemption(permitted, 0.0)
    return made


def test_6_4_1_the_owner_starts_as_master() -> None:
    made = owner()
    assert [type(action) for action in made.start(0.0)] == [
        StateChanged,
        Advertise,
        AcquireAddresses,
        AnnounceAddresses,
        StateChanged,
    ]
    assert made.state is VrrpState.MASTER


def test_6_1_the_owner_always_preempts() -> None:
    made = owner(preempt=False, permitted=False)
    made.start(0.0)
    made.permit_preemption(True, 0.5)
    for tick in range(1, 5):
        made.receive(heard(254), PEER, float(tick))
        made.expire(float(tick))
    assert made.state is VrrpState.MASTER


def test_6_4_3_erratum_8298_two_owners_settle_by_their_addresses() -> None:
    made = owner()
    made.start(0.0)
    assert Advertise(255) in made.receive(heard(255), parse_address("10.0.0.1"), 0.5)
    assert ReleaseAddresses() in made.receive(heard(255), PEER, 1.0)
    assert made.state is VrrpState.BACKUP
    assert made.receive(heard(255), PEER, 1.5) == ()
    assert made.deadline == 1.5 + made.down_interval


def test_6_4_2_a_backup_holds_no_addresses() -> None:
    # Without the address the kernel neither answers ARP or neighbour solicitations for
    # it nor accepts packets to it.
    made = unstarted()
    assert AcquireAddresses() not in made.start(0.0)
    assert made.receive(heard(200), PEER, 1.0) == ()


def test_6_4_2_shutdown_of_a_backup_cancels_the_timer() -> None:
    made = election()
    assert Advertise(0) not in made.stop(1.0)
    assert made.state is VrrpState.INIT
    assert made.deadline is None


def test_6_4_2_the_timer_makes_it_advertise_and_then_announce() -> None:
    made = election()
    actions = made.expire(made.down_interval)
    assert actions.index(Advertise(100)) < actions.index(AcquireAddresses())
    assert actions.index(AcquireAddresses()) < actions.index(AnnounceAddresses())
    assert made.state is VrrpState.MASTER
    assert made.deadline == made.down_interval + 1.0


def test_6_4_2_gratuitous_arp_for_an_ipv4_address() -> None:
    request, reply = announcement_frames(MAC, VIRTUAL, router=True)
    assert request[:12] == bytes.fromhex("ff" * 6) + MAC
    packet = arp.parse(request[14:])
    assert (packet.operation, packet.sender_address, packet.target_address) == (
        arp.REQUEST,
        VIRTUAL,
        VIRTUAL,
    )
    # Erratum 7949: the target link-layer address is that of the virtual router.
    assert packet.sender_mac == packet.target_mac == MAC
    assert arp.parse(reply[14:]).operation == arp.REPLY


def test_6_4_2_unsolicited_neighbour_advertisement_for_an_ipv6_address() -> None:
    (frame,) = announcement_frames(MAC, VIRTUAL6, router=True)
    header = ipv6.parse(frame[14:54])
    assert (header.hop_limit, header.destination) == (255, parse_address("ff02::1"))
    told = neighbour_discovery.parse(
        frame[54:], source=header.source, destination=header.destination
    )
    assert told == neighbour_discovery.NeighbourAdvertisement(
        VIRTUAL6, MAC, router=True, solicited=False, override=True
    )


def test_6_4_2_priority_zero_sets_the_timer_to_the_skew() -> None:
    made = election()
    made.receive(heard(0), PEER, 1.0)
    assert made.deadline == 1.0 + made.skew


@pytest.mark.parametrize(("preempt", "priority"), [(True, 100), (True, 200), (False, 1)])
def test_6_4_2_an_accepted_advertisement_teaches_the_interval_and_resets_the_timer(
    preempt: bool, priority: int
) -> None:
    made = election(preempt=preempt)
    made.receive(heard(priority, interval_cs=20), PEER, 1.0)
    assert made.down_interval == pytest.approx(0.6 + 156 * 0.2 / 256)
    assert made.deadline == 1.0 + made.down_interval


def test_6_4_2_with_preemption_a_lower_priority_is_discarded() -> None:
    made = election()
    before = made.deadline
    made.receive(heard(99, interval_cs=20), PEER, 1.0)
    assert made.deadline == before


def test_6_4_3_shutdown_of_a_master_resigns() -> None:
    made = master()
    assert made.stop(4.0)[:2] == (ReleaseAddresses(), Advertise(0))
    assert made.deadline is None


def test_6_4_3_the_advertisement_timer_is_reset_after_each_sending() -> None:
    made = master()
    now = made.down_interval + 1.0
    assert Advertise(100) in made.expire(now)
    assert made.deadline == now + 1.0


def test_6_4_3_priority_zero_is_answered_at_once() -> None:
    made = master()
    assert made.receive(heard(0), PEER, 4.0) == (Advertise(100),)
    assert Advertise(100) not in made.expire(4.99)
    assert Advertise(100) in made.expire(5.0)


def test_6_4_3_a_higher_priority_makes_a_backup() -> None:
    made = master()
    made.receive(heard(200, interval_cs=20), PEER, 4.0)
    assert made.state is VrrpState.BACKUP
    assert made.down_interval == pytest.approx(0.6 + 156 * 0.2 / 256)
    assert made.deadline == 4.0 + made.down_interval


def test_6_4_3_equal_priorities_compare_addresses_as_unsigned_integers() -> None:
    made = master()
    assert ReleaseAddresses() not in made.receive(heard(100), bytes((9, 255, 255, 255)), 4.0)
    assert ReleaseAddresses() in made.receive(heard(100), bytes((200, 0, 0, 1)), 4.1)


def test_6_4_3_a_losing_advertisement_is_answered_at_once() -> None:
    made = master()
    assert Advertise(100) in made.receive(heard(99), PEER, 4.0)
    assert made.state is VrrpState.MASTER


def test_7_1_the_version_is_3() -> None:
    for version in (0, 1, 2, 4, 15):
        with pytest.raises(WireError, match="version"):
            parse(message(byte0=version << 4 | 1))


def test_7_1_the_message_is_complete() -> None:
    with pytest.raises(WireError, match="cut short"):
        parse(message(byte3=2))


def test_7_1_messages_of_another_virtual_router_are_discarded() -> None:
    transport = SilentTransport()
    transport.arrived = [from_peer(message(byte1=8))]
    speaker = speak(transport, unstarted(), [VIRTUAL])
    assert speaker.election.peer is None
    assert speaker.counters["other_virtual_router"] == 1


def test_7_1_erratum_8301_an_interval_of_zero_is_discarded() -> None:
    with pytest.raises(WireError, match="interval 0"):
        parse(message(byte4=0xF0, byte5=0))


def test_7_1_another_interval_or_address_list_is_told_but_accepted() -> None:
    transport = SilentTransport()
    transport.arrived = [from_peer(message(byte5=50))]
    speaker = speak(transport, unstarted(), [parse_address("192.0.2.99")])
    assert speaker.election.peer is not None
    assert speaker.counters["interval_differs"] == 1
    assert speaker.counters["address_list_differs"] == 1


def test_7_2_fields_are_those_of_the_configuration() -> None:
    transport = SilentTransport()
    speak(transport, unstarted(), [VIRTUAL])
    sent = vrrp.parse(transport.sent[0], source=OWN, destination=vrrp.GROUP_IPv4)
    assert sent == vrrp.Advertisement(7, 100, 100, (VIRTUAL,))


def test_7_2_messages_go_to_the_group() -> None:
    assert vrrp.GROUP_IPv4 == parse_address("224.0.0.18")
    assert vrrp.GROUP_IPv6 == parse_address("ff02::12")


def test_7_3_virtual_router_mac_addresses() -> None:
    assert vrrp.virtual_mac(7, 4) == bytes.fromhex("00005e000107")
    assert vrrp.virtual_mac(255, 6) == bytes.fromhex("00005e0002ff")


@pytest.mark.parametrize(
    ("source", "group", "header"),
    [
        (OWN, vrrp.GROUP_IPv4, IP(dst="224.0.0.18", ttl=255, id=0, flags="DF", proto=112)),
        (OWN6, vrrp.GROUP_IPv6, IPv6(dst="ff02::12", hlim=255, nh=112)),
    ],
    ids=["IPv4", "IPv6"],
)
def test_7_2_advertisements_come_from_the_virtual_mac(
    source: bytes, group: bytes, header: IP | IPv6
) -> None:
    mac = vrrp.virtual_mac(7, 4)
    frame = Ether(frame_to_group(mac, source, group, b"message!"))
    assert (frame.src, frame.dst) == (
        "00:00:5e:00:01:07",
        "01:00:5e:00:00:12" if len(source) == 4 else "33:33:00:00:00:12",
    )
    header.src = format_address(source)
    (header.setfieldval)("tos" if len(source) == 4 else "tc", 0xC0)
    assert bytes(frame)[14:] == bytes(header / Raw(b"message!"))


def test_8_1_2_announcements_name_the_virtual_mac_and_come_from_it() -> None:
    mac = vrrp.virtual_mac(7, 4)
    for frame in announcement_frames(mac, VIRTUAL, router=True):
        assert frame[6:12] == mac
        assert arp.parse(frame[14:]).sender_mac == mac
