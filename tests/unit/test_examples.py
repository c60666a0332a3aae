"""The example pair files are in order, for every node that they name."""

from pathlib import Path

import pytest

from lvsha.build import build_director
from lvsha.config import Pair, load_pair
from lvsha.model import ForwardMethod

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.toml"))
VAGRANT = ROOT / "vagrant" / "pair.toml"


def load(name: str) -> Pair:
    return load_pair(ROOT / "deploy" / "examples" / name)


@pytest.mark.parametrize("path", [*EXAMPLES, VAGRANT], ids=lambda path: path.name)
def test_example_is_in_order(path: Path) -> None:
    pair = load_pair(path)
    assert len(pair.nodes) == 2
    assert pair.sync is not None
    assert len(build_director(pair).services) == len(pair.services)


def test_every_shape_of_a_pair_has_an_example() -> None:
    assert [path.stem for path in EXAMPLES] == ["mutual-backup", "two-node", "unicast"]


def test_the_unicast_pair_lists_both_speakers() -> None:
    (router,) = load("unicast.toml").virtual_routers
    assert len(router.peers) == 2
    assert router.preempt_delay > 0


def test_the_unicast_pair_moves_a_table_with_its_rule() -> None:
    (router,) = load("unicast.toml").virtual_routers
    (route,) = router.routes
    (rule,) = router.rules
    assert route.table == rule.table
    assert rule.source is not None
    assert route.src in rule.source


def test_in_the_two_node_pair_one_node_leads_everywhere() -> None:
    pair = load("two-node.toml")
    for router in pair.virtual_routers:
        assert pair.nodes["director-east"].priority_of(router.name) > pair.nodes[
            "director-west"
        ].priority_of(router.name)


def test_nat_in_the_two_node_pair_has_a_gateway_that_moves_with_the_clients_address() -> None:
    (router,) = load("two-node.toml").virtual_routers
    assert {placed.interface for placed in router.addresses} == {"outside", "inside"}


def test_in_mutual_backup_each_node_leads_somewhere_under_a_sync_id_of_its_own() -> None:
    pair = load("mutual-backup.toml")
    leaders = {
        max(pair.nodes, key=lambda name: pair.nodes[name].priority_of(router.name))
        for router in pair.virtual_routers
    }
    assert leaders == set(pair.nodes)
    assert len({router.sync_id for router in pair.virtual_routers}) == len(pair.virtual_routers)
    assert {router.family for router in pair.virtual_routers} == {4, 6}


def test_every_address_of_a_service_moves() -> None:
    for path in (*EXAMPLES, VAGRANT):
        pair = load_pair(path)
        moving = {
            placed.address.ip for router in pair.virtual_routers for placed in router.addresses
        }
        assert {service.address for service in pair.services} <= moving


def test_the_vagrant_pair_tries_nat_and_direct_routing() -> None:
    pair = load_pair(VAGRANT)
    methods = {service.method_of(server) for service in pair.services for server in service.servers}
    assert methods == {ForwardMethod.NAT, ForwardMethod.DIRECT_ROUTE}
