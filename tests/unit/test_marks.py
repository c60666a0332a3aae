import pytest

from lvsha.datapath.marks import MarkRule, Marks, Prefix, whole
from lvsha.model import Protocol, connection_key, parse_address

C4, V4, C6, V6 = "198.51.100.71", "192.0.2.21", "2001:db8:1::77", "2001:db8:ffff::21"


def key(
    protocol: Protocol = Protocol.TCP, source: str = C4, destination: str = V4, port: int = 80
) -> bytes:
    return connection_key(protocol, parse_address(source), 40000, parse_address(destination), port)


def prefix(text: str) -> Prefix:
    address, _, length = text.partition("/")
    return parse_address(address), int(length)


def test_without_rules_no_packet_has_a_mark() -> None:
    assert Marks().of(key()) == 0


@pytest.mark.parametrize(
    ("destination", "fits"),
    [
        ("192.0.2.21/32", True),
        ("192.0.2.20/32", False),
        ("192.0.2.20/31", True),
        ("192.0.2.99/24", True),
        ("192.0.3.0/24", False),
        ("0.0.0.0/0", True),
        ("::/0", False),
    ],
)
def test_a_rule_is_for_the_addresses_of_its_prefix_and_family(destination: str, fits: bool) -> None:
    assert MarkRule(1, prefix(destination)).fits(key()) is fits


@pytest.mark.parametrize(
    ("destination", "fits"),
    [
        ("2001:db8:ffff::21/128", True),
        ("2001:db8:ffff::20/128", False),
        ("2001:db8::/32", True),
        ("2001:db9::/32", False),
        ("::/0", True),
        ("0.0.0.0/0", False),
    ],
)
def test_a_rule_knows_ipv6_alike(destination: str, fits: bool) -> None:
    assert MarkRule(1, prefix(destination)).fits(key(source=C6, destination=V6)) is fits


def test_a_rule_may_name_the_source() -> None:
    rule = MarkRule(1, prefix("192.0.2.0/24"), source=prefix("198.51.100.64/26"))
    assert rule.fits(key())
    assert not rule.fits(key(source="198.51.100.128"))


def test_a_rule_may_name_the_protocol_and_else_is_for_all() -> None:
    some, of_any = (MarkRule(1, prefix("0.0.0.0/0"), protocol=p) for p in (Protocol.UDP, 0))
    assert some.fits(key(Protocol.UDP))
    assert not some.fits(key(Protocol.TCP))
    assert all(of_any.fits(key(p)) for p in (Protocol.TCP, Protocol.UDP, Protocol.SCTP))


@pytest.mark.parametrize(
    ("port", "fits"),
    [(79, False), (80, True), (81, False), (999, False), (1000, True), (1999, True), (2000, False)],
)
def test_a_rule_may_name_ranges_of_destination_ports(port: int, fits: bool) -> None:
    rule = MarkRule(1, prefix("0.0.0.0/0"), ports=((80, 80), (1000, 1999)))
    assert rule.fits(key(port=port)) is fits


def test_the_first_rule_that_fits_decides() -> None:
    marks = Marks()
    marks.set(
        [
            MarkRule(1, prefix("0.0.0.0/0"), ports=((443, 443),)),
            MarkRule(2, prefix("192.0.2.0/24")),
            MarkRule(3, prefix("0.0.0.0/0")),
        ]
    )
    assert [marks.of(key(port=port)) for port in (443, 80)] == [1, 2]
    assert marks.of(key(destination="192.0.3.1")) == 3
    marks.set([])
    assert marks.of(key()) == 0


def test_a_whole_address_is_the_prefix_of_that_address_alone() -> None:
    assert whole(parse_address(V4)) == (parse_address(V4), 32)
    assert whole(parse_address(V6)) == (parse_address(V6), 128)
