from lvsha.datapath.services import Statistics
from lvsha.model import ConnectionFlag, parse_address
from tests import packets
from tests.laboratory import C4, DR, NAT, S4, TUN, V4, V6, Laboratory


def test_a_new_server_stands_at_the_head_of_the_list() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    for last in (2, 3, 4):
        laboratory.server(service, f"10.1.0.{last}")
    assert [str(server) for server in service.servers] == [
        "10.1.0.4:80",
        "10.1.0.3:80",
        "10.1.0.2:80",
    ]


def test_only_nat_translates_and_sees_output() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    nat = laboratory.server(service, "10.1.0.2", 8080, method=NAT)
    others = [
        laboratory.server(service, f"10.1.0.{3 + n}", method=m) for n, m in enumerate((DR, TUN))
    ]
    binding = nat.bind(parse_address(V4), 80, 8080)
    assert binding.to_server.translation is not None
    assert binding.to_client is not None
    assert nat.connection_flags == ConnectionFlag.INACTIVE
    for server in others:
        binding = server.bind(parse_address(V4), 80, 80)
        assert (binding.to_server.translation, binding.to_client) == (None, None)
        assert server.connection_flags == ConnectionFlag.INACTIVE | ConnectionFlag.NO_OUTPUT


def test_a_service_finds_its_server_by_address_and_port() -> None:
    laboratory = Laboratory()
    service = laboratory.service(V6)
    server = laboratory.server(service, "fd00:5::2", 8080)
    assert service.server(parse_address("fd00:5::2"), 8080) is server
    assert service.server(parse_address("fd00:5::2"), 80) is None
    assert laboratory.director.services.get(service.identity) is service


def test_a_service_counts_what_its_past_servers_did() -> None:
    laboratory = Laboratory()
    service = laboratory.service()
    server = laboratory.server(service, S4)
    laboratory.send("client", packets.tcp(C4, 1, V4, 80))
    laboratory.send("server", packets.tcp(S4, 80, C4, 1, packets.SYN | packets.ACK))
    expected = Statistics(1, 1, 1, 40, 40)
    assert server.counted() == service.counted() == expected
    laboratory.remove(server)
    assert service.counted() == expected
    assert laboratory.server(service, S4) is server
    assert server.counted() == service.counted() == expected
