"""Metrics: each is a number of the status, read back by the library's own parser."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lvsha.metrics import render
from lvsha.model import Witness

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

STATUS: dict[str, Any] = {
    "node": "east",
    "version": "0.1.0",
    "configuration": "9c23",
    "uptime_seconds": 4.5,
    "connections": 7,
    "life": {"fault": None, "lateness_max_seconds": 0.25, "counters": {"stalls": 2}},
    "drops": {"stale": 3},
    "counters": {"forwarder": {"interception_restored": 1}, "sync": {"51": {"x": 1}}},
    "daemons": {"counters": {"frames_read": 6}},
    "tracking": {
        "trackers": {
            "gate": {"kind": "gateway", "state": "down"},
            "eth": {"kind": "interface", "state": "up"},
        },
        "groups": {"both": {"state": "BACKUP", "routers": ["web", "new"]}},
        "events": {"counters": {"readers": 4}},
        "notifications": {"counters": {"programs_run": 5}},
    },
    "second_path": {
        "witness_state": "reachable",
        "fencing": {"counters": {"fencing_runs": 8}},
    },
    "routers": {
        "web": {
            "state": "MASTER",
            "priority": 150,
            "since_seconds": 12.0,
            "addresses_held": True,
            "peer": {"heard_seconds_ago": 0.5},
            "transitions": {"master_silent": 2},
            "counters": {"advertisements_sent": 40},
            "second_path": {"alarm": True},
        },
        "new": {"state": "INIT", "priority": 100, "peer": None, "fault": None},
    },
    "takeovers": {"web": {"frames": "seen", "counters": {"announced_again": 3}}},
    "sync": {
        "51": {
            "connections": 7,
            "established": 5,
            "complete": True,
            "at_risk": 1,
            "role": "LEAD",
            "counters": {"datagrams_sent": 35},
            "peers": [
                {
                    "node": "west",
                    "heard_ms_ago": 250.0,
                    "connections": 6,
                    "coverage": 0.8,
                    "lag_connections": 1,
                    "lag_ms": 3.0,
                    "datagrams_lost": 9,
                    "datagrams_repaired": 8,
                },
                {"node": "old", "heard_ms_ago": 1000.0, "connections": 0},
            ],
        }
    },
    "services": {
        "http": {
            "health": {"quorum": "reached", "weight_up": 3},
            "servers": [
                {
                    "address": "10.0.0.1:80",
                    "weight": 3,
                    "active": 5,
                    "inactive": 1,
                    "persistent": 0,
                    "connections": 70,
                    "in_packets": 700,
                    "out_packets": 600,
                    "in_bytes": 70000,
                    "out_bytes": 60000,
                    "health": {"opinion": "up"},
                },
                {"address": "10.0.0.2:80", "health": {"opinion": "down"}},
            ],
        },
        "plain": {"health": None, "servers": []},
    },
}


def found(status: dict[str, Any] | None = None) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels, these in order of the alphabet."""
    text = render(STATUS if status is None else status).decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


EXPECTED = {
    ("lvsha_info", "east", "0.1.0", "9c23"): 1,
    ("lvsha_uptime_seconds",): 4.5,
    ("lvsha_connections",): 7,
    ("lvsha_lateness_max_seconds",): 0.25,
    ("lvsha_hung",): 0,
    ("lvsha_drops_total", "stale"): 3,
    ("lvsha_events_total", "forwarder", "interception_restored"): 1,
    ("lvsha_events_total", "life", "stalls"): 2,
    ("lvsha_events_total", "events", "readers"): 4,
    ("lvsha_events_total", "notifications", "programs_run"): 5,
    ("lvsha_events_total", "daemons", "frames_read"): 6,
    ("lvsha_events_total", "fencing", "fencing_runs"): 8,
    ("lvsha_group_state", "both", "BACKUP"): 1,
    ("lvsha_group_state", "both", "MASTER"): 0,
    ("lvsha_second_path_alarm", "web"): 1,
    ("lvsha_router_state", "web", "MASTER"): 1,
    ("lvsha_router_state", "web", "BACKUP"): 0,
    ("lvsha_router_state", "new", "INIT"): 1,
    ("lvsha_router_priority", "web"): 150,
    ("lvsha_router_state_seconds", "web"): 12,
    ("lvsha_router_addresses_held", "web"): 1,
    ("lvsha_router_peer_heard_seconds", "web"): 0.5,
    ("lvsha_router_transitions_total", "web", "master_silent"): 2,
    ("lvsha_router_events_total", "web", "advertisements_sent"): 40,
    ("lvsha_tracker_up", "gate", "gateway"): 0,
    ("lvsha_tracker_up", "eth", "interface"): 1,
    ("lvsha_witness_up",): 1,
    ("lvsha_takeover_events_total", "web", "announced_again"): 3,
    ("lvsha_sync_connections", "51"): 7,
    ("lvsha_sync_established", "51"): 5,
    ("lvsha_sync_complete", "51"): 1,
    ("lvsha_sync_at_risk", "51"): 1,
    ("lvsha_sync_leads", "51"): 1,
    ("lvsha_sync_events_total", "51", "datagrams_sent"): 35,
    ("lvsha_sync_peer_heard_seconds", "51", "west"): 0.25,
    ("lvsha_sync_peer_connections", "51", "west"): 6,
    ("lvsha_sync_peer_coverage", "51", "west"): 0.8,
    ("lvsha_sync_peer_lag_connections", "51", "west"): 1,
    ("lvsha_sync_peer_lag_seconds", "51", "west"): 0.003,
    ("lvsha_sync_peer_datagrams_lost_total", "51", "west"): 9,
    ("lvsha_sync_peer_datagrams_repaired_total", "51", "west"): 8,
    ("lvsha_sync_peer_heard_seconds", "51", "old"): 1,
    ("lvsha_service_quorum", "http"): 1,
    ("lvsha_service_weight_up", "http"): 3,
    ("lvsha_server_up", "http", "10.0.0.1:80"): 1,
    ("lvsha_server_up", "http", "10.0.0.2:80"): 0,
    ("lvsha_server_weight", "http", "10.0.0.1:80"): 3,
    ("lvsha_server_active", "http", "10.0.0.1:80"): 5,
    ("lvsha_server_inactive", "http", "10.0.0.1:80"): 1,
    ("lvsha_server_persistent", "http", "10.0.0.1:80"): 0,
    ("lvsha_server_connections_total", "http", "10.0.0.1:80"): 70,
    ("lvsha_server_in_packets_total", "http", "10.0.0.1:80"): 700,
    ("lvsha_server_out_packets_total", "http", "10.0.0.1:80"): 600,
    ("lvsha_server_in_bytes_total", "http", "10.0.0.1:80"): 70000,
    ("lvsha_server_out_bytes_total", "http", "10.0.0.1:80"): 60000,
}


def test_every_number_stands_under_its_name() -> None:
    metrics = found()
    expected = {(name, *sorted(labels)): value for (name, *labels), value in EXPECTED.items()}
    assert {key: metrics.get(key) for key in expected} == expected
    assert sum(key[0] == "lvsha_router_state" and "web" in key for key in metrics) == 4
    assert ("lvsha_sync_peer_lag_seconds", "51", "old") not in metrics
    assert not any(
        key[0].startswith("lvsha_server_weight") and "10.0.0.2:80" in key for key in metrics
    )


def test_a_hung_loop_is_seen() -> None:
    life = {**STATUS["life"], "fault": "the loop hangs"}
    assert found({**STATUS, "life": life})["lvsha_hung",] == 1


@pytest.mark.parametrize(
    ("witness", "up"),
    [(Witness.REACHABLE, 1), (Witness.UNREACHABLE, 0), (Witness.UNKNOWN, 0), (Witness.NONE, None)],
)
def test_a_witness_answers_or_there_is_none(witness: Witness, up: int | None) -> None:
    second_path = {"witness_state": witness.name.lower(), "fencing": None}
    assert found({**STATUS, "second_path": second_path}).get(("lvsha_witness_up",)) == up


def test_without_a_second_path_nothing_is_said_of_it() -> None:
    assert ("lvsha_witness_up",) not in found({**STATUS, "second_path": None})


def test_what_is_not_known_yet_is_not_up() -> None:
    status = deepcopy(STATUS)
    status["tracking"]["trackers"]["eth"]["state"] = "unknown"
    status["second_path"]["witness_state"] = "unknown"
    status["sync"]["51"]["role"] = "DRAIN"
    status["services"]["http"]["health"]["quorum"] = "unknown"
    status["services"]["http"]["servers"][0]["health"]["opinion"] = "unknown"
    metrics = found(status)
    for name, *labels in (
        ("lvsha_tracker_up", "eth", "interface"),
        ("lvsha_witness_up",),
        ("lvsha_sync_leads", "51"),
        ("lvsha_service_quorum", "http"),
        ("lvsha_server_up", "http", "10.0.0.1:80"),
    ):
        assert metrics[name, *sorted(labels)] == 0


def test_what_is_none_at_all_is_told_as_well() -> None:
    status = deepcopy(STATUS)
    status["routers"]["web"] |= {"priority": 0, "since_seconds": 0.0, "addresses_held": False}
    nothing = ("heard_ms_ago", "coverage", "lag_connections", "lag_ms", "datagrams_lost")
    status["sync"]["51"]["peers"][0] |= dict.fromkeys(nothing, 0)
    metrics = found(status)
    for name in ("priority", "state_seconds", "addresses_held"):
        assert metrics[f"lvsha_router_{name}", "web"] == 0
    for name in ("heard_seconds", "coverage", "lag_connections", "lag_seconds"):
        assert metrics[f"lvsha_sync_peer_{name}", "51", "west"] == 0
    assert metrics["lvsha_sync_peer_datagrams_lost_total", "51", "west"] == 0


def test_the_page_lists_every_metric() -> None:
    rows = set(re.findall(r"^\| `(lvsha_\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert rows == {key[0] for key in found()}
