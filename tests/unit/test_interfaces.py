"""Which address of an interface is its own, and what is said when there is none."""

from pathlib import Path

import netifaces
import pytest

from lvsha import interfaces
from lvsha.errors import HostError
from lvsha.failover.transport import own_address, split_speakers
from lvsha.model import parse_address

Listing = dict[int, list[dict[str, str]]]
FOUND: Listing = {
    netifaces.AF_PACKET: [{"addr": "02:00:00:00:00:01", "broadcast": "ff:ff:ff:ff:ff:ff"}],
    netifaces.AF_INET: [{"addr": "192.0.2.10"}, {"addr": "192.0.2.1"}],
    netifaces.AF_INET6: [
        {"addr": "2001:db8::1"},
        {"addr": "fe80::10%eth0"},
        {"addr": "fe80::1%eth0"},
    ],
}


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> Listing:
    found = dict(FOUND)

    def ifaddresses(name: str) -> Listing:
        if name != "eth0":
            raise ValueError("You must specify a valid interface name.")
        return found

    monkeypatch.setattr(netifaces, "ifaddresses", ifaddresses)
    return found


def test_the_first_ipv4_address_that_is_not_virtual_is_the_primary(listing: Listing) -> None:
    assert interfaces.primary_ipv4("eth0") == parse_address("192.0.2.10")
    virtual = [parse_address("192.0.2.10")]
    assert interfaces.primary_ipv4("eth0", virtual) == parse_address("192.0.2.1")


def test_the_link_local_address_is_found_without_its_zone(listing: Listing) -> None:
    assert interfaces.link_local_ipv6("eth0") == parse_address("fe80::10")
    virtual = [parse_address("fe80::10")]
    assert interfaces.link_local_ipv6("eth0", virtual) == parse_address("fe80::1")


def test_the_hardware_address_is_six_bytes(listing: Listing) -> None:
    assert interfaces.mac_address("eth0") == bytes.fromhex("020000000001")
    listing[netifaces.AF_PACKET] = [{"addr": "0a:00:00:01"}]
    with pytest.raises(HostError, match="eth0 has no Ethernet address"):
        interfaces.mac_address("eth0")


def test_what_is_missing_is_one_sentence_with_the_interface(listing: Listing) -> None:
    with pytest.raises(HostError, match="eth1 does not exist"):
        interfaces.primary_ipv4("eth1")
    listing.clear()
    with pytest.raises(HostError, match="eth0 has no IPv4 address"):
        interfaces.primary_ipv4("eth0")
    with pytest.raises(HostError, match="eth0 has no link-local IPv6 address"):
        interfaces.link_local_ipv6("eth0")


@pytest.mark.parametrize(
    ("speakers", "own"),
    [
        (("192.0.2.1", "192.0.2.2", "192.0.2.3"), 0),
        (("192.0.2.2", "192.0.2.10"), 1),
        (("2001:db8::2", "2001:db8::1"), 1),
        (("fe80::1", "fe80::2"), 0),
    ],
)
def test_a_node_finds_its_own_address_among_the_speakers(
    listing: Listing, speakers: tuple[str, ...], own: int
) -> None:
    addresses = [parse_address(one) for one in speakers]
    expected = addresses[own], tuple(addresses[:own] + addresses[own + 1 :])
    assert split_speakers("eth0", addresses) == expected


@pytest.mark.parametrize("speakers", [("192.0.2.2", "192.0.2.3"), ("192.0.2.1", "192.0.2.10")])
def test_a_node_that_is_no_speaker_or_two_of_them_is_told(
    listing: Listing, speakers: tuple[str, ...]
) -> None:
    with pytest.raises(HostError, match=r"eth0 has [02] of the addresses 192\.0\.2\."):
        split_speakers("eth0", [parse_address(one) for one in speakers])


def test_an_own_address_stays_as_long_as_it_is_there(listing: Listing) -> None:
    second = parse_address("192.0.2.1")
    assert own_address("eth0", 4, (), second) == second
    listing[netifaces.AF_INET] = [{"addr": "192.0.2.10"}]
    assert own_address("eth0", 4, (), second) == parse_address("192.0.2.10")
    assert own_address("eth0", 4, ()) == parse_address("192.0.2.10")


def test_what_may_be_a_duplicate_is_told_by_its_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "if_inet6"
    monkeypatch.setattr(interfaces, "_IPv6_ADDRESSES", table)
    address = parse_address("fe80::1")
    assert not interfaces.is_tentative("eth0", address)
    # Permanent; tentative; tentative and a duplicate; tentative but optimistic (RFC 4429).
    for flags, tentative in (("80", False), ("c0", True), ("c8", True), ("44", False)):
        table.write_text(
            "fe800000000000000000000000000001 03 40 20 c0     eth1\n"
            f"fe800000000000000000000000000001 02 40 20 {flags}     eth0\n"
        )
        assert interfaces.is_tentative("eth0", address) is tentative
    assert not interfaces.is_tentative("eth0", parse_address("fe80::2"))
