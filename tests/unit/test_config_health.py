"""The parts of a pair file about health checks: what is read and what is refused."""

import pytest

from lvsha.config import Pair, parse_pair
from lvsha.config_health import Check
from lvsha.errors import ConfigError

NODES = """
[nodes.east]
interfaces = { outside = "eth0", inside = "eth1" }
[nodes.west]
interfaces = { outside = "eth0" }
"""


def read(
    keys: str, servers: str = '{ address = "10.1.0.11", weight = 10 }', port: int = 80
) -> Pair:
    service = f"""
[[services]]
name = "web"
address = "192.0.2.10"
port = {port}
persistence = 60
servers = [{servers}]
{keys}
"""
    return parse_pair(service + NODES, "pair.toml")


def test_a_server_has_its_services_checks_or_its_own() -> None:
    pair = read(
        'checks = [{ type = "tcp" }]',
        '{ address = "10.1.0.11" }, { address = "10.1.0.12", checks = [] }, '
        '{ address = "10.1.0.13", checks = [{ type = "ping" }, { type = "http" }] }',
    )
    (service,) = pair.services
    found = [(number, place, check.type) for number, place, _, check in service.all_checks()]
    assert found == [(0, 0, "tcp"), (2, 0, "ping"), (2, 1, "http")]
    assert service.is_checked


def test_statuses_are_numbers_and_ranges() -> None:
    pair = read('checks = [{ type = "http", status = [200, "301-303"] }]')
    (check,) = pair.services[0].checks
    assert [status for status in range(100, 600) if check.accepts(status)] == [200, 301, 302, 303]


def test_payloads_are_text_or_hexadecimal() -> None:
    pair = read(
        'checks = [{ type = "udp", payload_hex = "00 ff", expect = "\u00e4" }, { type = "udp" }]'
    )
    first, second = pair.services[0].checks
    assert (first.payload_octets, first.expected_octets) == (b"\x00\xff", "\u00e4".encode())
    assert (second.payload_octets, second.expected_octets) == (b"", b"")


def test_the_digest_covers_the_checks() -> None:
    one, other = (
        read(f'checks = [{{ type = "udp", payload_hex = "{octets}" }}]') for octets in ("00", "ff")
    )
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('type = "telnet"', "services[0].checks[0].type: expected"),
        ("", "services[0].checks[0].type: missing"),
        ('type = "tcp", path = "/"', 'checks[0].path: expected only with type = "http"'),
        ('type = "http", sni = "a"', "checks[0].sni: expected only with"),
        ('type = "http", status = [600]', "checks[0].status[0]: expected a status"),
        ('type = "http", status = ["30-20"]', "status[0]: expected a status"),
        ('type = "http", status = [true]', "status[0]: expected a status"),
        ('type = "http", path = "index"', "path: expected a path that begins with"),
        ('type = "http", path = "/a b"', "path: expected"),
        ('type = "http", host = "a\\r\\nb"', "host: expected"),
        ('type = "http", host = "a..b"', "host: expected a name"),
        ('type = "https", host = ".b:443"', "host: expected a name"),
        ('type = "https", host = ":443"', "host: expected a name"),
        ('type = "http", host = "b:http"', "host: expected a name"),
        ('type = "http", host = "::1"', "host: expected a name"),
        ('type = "http", host = "[::1"', "host: expected a name"),
        ('type = "http", host = "[::x]:80"', "host: expected a name"),
        (f'type = "https", host = "{"a" * 64}.b"', "host: expected a name"),
        (f'type = "https", host = "{"a." * 127}b"', "host: expected a name"),
        ('type = "https", sni = "a..b"', "checks[0].sni: expected a name"),
        ('type = "https", sni = ".b"', "sni: expected a name"),
        ('type = "https", sni = "."', "sni: expected a name"),
        (f'type = "https", sni = "{"a" * 64}"', "sni: expected a name"),
        ('type = "http", body_regex = "("', "body_regex: expected a regular"),
        ('type = "http", body = "a", body_regex = "b"', "body_regex: expected none"),
        ('type = "https", verify = false, ca_file = "/x"', "ca_file: expected none"),
        ('type = "udp", payload = "a", payload_hex = "00"', "payload_hex: expected none"),
        ('type = "udp", expect_hex = "0"', "expect_hex: expected bytes in hexadecimal"),
        ('type = "script"', "command: missing"),
        ('type = "script", command = ["true"]', "command: expected an absolute path"),
        ('type = "script", command = ["/a"], mark = 1', "mark: expected none"),
        ('type = "ping", port = 1', "port: expected none"),
        ('type = "tcp", interval = 0', "interval: expected"),
        ('type = "tcp", interface = "inside"', "interface: expected a role that nodes.west"),
        ('type = "tcp", sources = { north = "10.1.0.1" }', "sources.north: expected the name"),
        ('type = "tcp", sources = { east = "fd00::1" }', "sources.east: expected an address"),
        ('type = "dns", query = "a b"', "query: expected"),
        ('type = "dns", query = "a..b"', "query: expected a domain name"),
        ('type = "dns", record = "NONE1"', "record: expected a type of records"),
        ('type = "dns", rcode = "PERFECT"', "rcode: expected a response code"),
        ('type = "dns", rcode = "BADVERS"', "rcode: expected a response code"),
        ('type = "dns", record = "A", answer = "::1"', "answer: expected the data of a record of"),
        ('type = "dns", record = "MX", answer = "a."', "answer: expected the data of a record of"),
        ('type = "dns", record = "ANY", answer = "a"', "answer: expected the data of a record of"),
        ('type = "smtp", helo = "a\\nb"', "helo: expected"),
    ],
)
def test_mistakes_of_a_check_name_the_key(keys: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"checks = [{{ {keys} }}]")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("www.example.org", "www.example.org"),
        ("www.example.org:8443", "www.example.org"),
        ("www.example.org.", "www.example.org."),
        ("under_score:", "under_score"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:db8::1]:80", None),
        ("a" * 63, "a" * 63),
    ],
)
def test_the_name_for_tls_is_that_of_the_host_field(host: str, name: str | None) -> None:
    check = Check.model_validate({"type": "https", "host": host})
    assert check.server_name == name
    assert Check.model_validate({"type": "https", "host": host, "sni": "b"}).server_name == "b"


def test_an_answer_is_one_whatever_way_it_is_written() -> None:
    def octets(record: str, answer: str) -> bytes | None:
        keys = {"type": "dns", "record": record, "answer": answer}
        return Check.model_validate(keys).answer_octets

    assert octets("AAAA", "2001:DB8::0:1") == octets("AAAA", "2001:db8::1")
    assert octets("MX", "10 Mail.example.org") == octets("MX", "10 mail.example.org.")
    assert octets("TXT", '"Hello"') != octets("TXT", '"hello"')


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("hysteresis = 2", "services[0].health.hysteresis: expected a number below"),
        ('quorum_up = ["x"]', "quorum_up: expected an absolute path"),
        ("drain = 5", "services[0].health: expected no drain"),
    ],
)
def test_mistakes_of_rules_name_the_key(keys: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f'checks = [{{ type = "tcp" }}]\nhealth = {{ {keys} }}')
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('address = "10.1.0.11"', "expected each server once"),
        ('address = "fd00::1"', "expected an IPv4 address"),
        ('address = "10.1.0.9", weight = 0', "sorry_server: expected no checks, and a weight"),
    ],
)
def test_mistakes_of_a_sorry_server_name_the_key(keys: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f'checks = [{{ type = "tcp" }}]\nsorry_server = {{ {keys} }}')
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "keys", ["health = { quorum = 2 }", 'sorry_server = { address = "10.1.0.99" }']
)
def test_nothing_follows_from_checks_that_are_not_there(keys: str) -> None:
    with pytest.raises(ConfigError, match="expected none, because no server has checks"):
        read(keys)


def test_a_weight_of_one_cannot_grow() -> None:
    with pytest.raises(ConfigError, match="no slow_start"):
        read(
            'checks = [{ type = "tcp" }]\nhealth = { slow_start = 5 }', '{ address = "10.1.0.11" }'
        )


def test_a_server_for_all_ports_needs_a_port_to_check() -> None:
    with pytest.raises(ConfigError, match="port: missing"):
        read('checks = [{ type = "tcp" }]', port=0)
    read('checks = [{ type = "tcp", port = 80 }, { type = "ping" }]', port=0)
