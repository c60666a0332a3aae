import io
import re

import pytest
from rich.console import Console

from lvsha.view import show_status

STATUS = {
    "node": "east",
    "version": "0.1",
    "uptime_seconds": 90.0,
    "connections": 12,
    "routers": {
        "web": {
            "state": "MASTER",
            "vrid": 7,
            "since_seconds": 7261.0,
            "priority": 100,
            "virtual_addresses": ["192.0.2.1", "2001:db8::1"],
            "peer": {"address": "10.0.0.2", "priority": 90, "heard_seconds_ago": 0.4},
        },
        "other": {"state": "FAULT", "fault": "interface eth0 is down"},
    },
    "services": {
        "web6": {
            "protocol": "tcp",
            "address": "[fd00::1]:80",
            "scheduler": "wlc",
            "at_risk": 17,
            "servers": [
                {"address": "[fd00:5::b]:8080", "method": "nat", "weight": 1, "active": 2},
                {"address": "[/]", "method": "dr"},
            ],
        },
        "empty": {"protocol": "udp", "address": "192.0.2.1:53", "scheduler": "rr", "servers": []},
    },
    "sync": {"7": {"role": "source", "complete": True, "peers": []}},
    "drops": {"no_connection": 3},
}


def shown(status: object) -> str:
    out = io.StringIO()
    show_status(status, Console(file=out, width=200, force_terminal=False))
    return out.getvalue()


def test_what_a_takeover_has_not_brought_and_how_the_loop_is_are_said() -> None:
    takeovers = {"web": {"frames": "silent"}, "other": {"frames": "seen"}}
    life = {"fault": None, "lateness_max_seconds": 0.0124, "watchdog_seconds": 20.0}
    text = shown({**STATUS, "takeovers": takeovers, "life": life})
    assert "web: no frame for its addresses has come since the takeover" in text
    assert "other: no frame" not in text
    assert "forwarding loop: latest turn 12 ms late, watchdog 20.0 s" in text
    hung = {"fault": "the loop that forwards does not answer", "watchdog_seconds": None}
    text = shown({**STATUS, "life": hung})
    assert "forwarding loop: the loop that forwards does not answer, no watchdog" in text


def test_what_another_node_thinks_otherwise_of_a_server_is_said_beside_it() -> None:
    health = {"opinion": "up", "since_seconds": 4.0, "reason": "connected"}
    server = {"address": "10.1.0.1:80", "health": {**health, "peers": {"west": "down", "n": "up"}}}
    web = {"address": "192.0.2.1:80", "servers": [server], "health": {"quorum": "reached"}}
    assert "up for 4.0 s: connected (west: down)" in shown({"services": {"web": web}})


def test_routes_that_were_refused_are_told_and_others_are_not() -> None:
    pieces = [
        {"kind": "route", "what": "default via 192.0.2.1", "installed": True, "error": None},
        {"kind": "rule", "what": "from [x] table 9", "installed": False, "error": "Not so"},
        {"kind": "route", "what": "10.9.0.0/16 dev in", "installed": False, "error": None},
    ]
    said = shown({"routers": {"web": {"state": "MASTER", "routes": {"pieces": pieces}}}})
    assert "web: rule from [x] table 9 was refused: Not so" in said
    assert "default via" not in said
    assert "10.9.0.0" not in said


def test_refused_messages_of_late_are_told_with_their_cause() -> None:
    def refused(ago: float, **details: object) -> str:
        last = {"cause": "hop_limit", "address": "10.0.0.9", **details, "heard_seconds_ago": ago}
        return shown({"routers": {"web": {"state": "MASTER", "last_refused": last}}})

    words = "web: messages of 10.0.0.9 are refused for their hop limit"
    assert f"{words} (hop_limit 64), 2.0 s ago" in refused(2.0, hop_limit=64)
    assert f"{words}, 2.0 s ago" in refused(2.0)
    assert words not in refused(61.0)
    assert words not in shown({"routers": {"web": {"last_refused": None}}})


def test_an_alarm_of_the_second_path_and_who_is_waited_for_are_told() -> None:
    path = {"verdict": "stay", "reason": "the master lives", "alarm": True}
    assert "web: second path: stay: the master lives" in shown(
        {"routers": {"web": {"second_path": path}}}
    )
    assert "second path" not in shown(
        {"routers": {"web": {"second_path": path | {"alarm": False}}}}
    )
    status = {
        "routers": {"web": {"awaits_consent": True}, "other": {"awaits_consent": False}},
        "second_path": {
            "fencing": {
                "peers": {
                    "west": {"state": "failed", "outcome": "exit code 1: no power switch"},
                    "north": {"state": "running", "outcome": None},
                    "south": {"state": "fenced"},
                }
            }
        },
    }
    text = shown(status)
    assert "web: waits for fencing of west: failed, exit code 1: no power switch\n" in text
    assert "web: waits for fencing of north: running\n" in text
    assert "south" not in text
    assert "other: waits" not in text


def test_every_part_of_a_status_is_shown() -> None:
    text = shown(STATUS)
    for words in (
        "east  lvsha 0.1, up 90.0 s, 12 connections",
        "2 h 1 min",
        "192.0.2.1, 2001:db8::1",
        "10.0.0.2 priority 90, heard 0.4 s ago",
        "FAULT: interface eth0 is down",
        "empty udp 192.0.2.1:53 rr",
        "dropped: no_connection 3",
    ):
        assert words in text


def test_what_is_at_risk_stands_beside_its_service_once() -> None:
    (first,) = (line for line in shown(STATUS).splitlines() if line.startswith("web6"))
    assert first.split()[4:6] == ["17", "[fd00:5::b]:8080"]
    assert shown(STATUS).count("17") == 1


def test_a_service_that_is_called_by_its_address_is_shown_with_it_once() -> None:
    named = {
        "TCP 192.0.2.1:80": {"protocol": "tcp", "address": "192.0.2.1:80", "scheduler": "rr"},
        "FWM 7": {"protocol": None, "address": "FWM 7", "scheduler": "wlc"},
        "marked": {"protocol": None, "address": "FWM 8", "scheduler": "lc"},
    }
    lines = [line.split("  ")[0] for line in shown({"services": named}).splitlines()]
    assert lines[2:] == ["tcp 192.0.2.1:80 rr", "FWM 7 wlc", "marked FWM 8 lc"]


def test_a_peer_that_is_no_longer_heard_is_not_shown_in_a_role() -> None:
    peer = {"node": "west", "role": "LEAD", "state": "PROBE", "silent": True}
    text = shown({"sync": {"7": {"peers": [peer]}}})
    assert "silent" in text
    assert "LEAD" not in text
    assert "LEAD" in shown({"sync": {"7": {"peers": [peer | {"silent": False}]}}})


def test_ipv6_addresses_in_brackets_are_shown_as_they_are() -> None:
    text = shown(STATUS)
    assert "[fd00::1]:80" in text
    assert "[fd00:5::b]:8080" in text
    assert "[/]" in text


def test_daemons_are_shown_with_what_they_have_told_and_taken() -> None:
    master = {
        "sync_id": 7,
        "interface": "eth2",
        "speaks": True,
        "waiting_messages": 3,
        "counters": {"records": 120},
    }
    backup = {
        "sync_ids": [7, 8],
        "interface": "eth3",
        "heard_seconds_ago": 0.4,
        "counters": {"datagrams": 2, "records": 45},
    }
    masters = [master, master | {"sync_id": 8, "speaks": False, "counters": {}}]
    backups = [backup, backup | {"heard_seconds_ago": None}]
    lines = shown({"daemons": {"masters": masters, "backups": backups}}).splitlines()
    cells = [re.split(r" {2,}", line.strip()) for line in lines[1:]]
    assert cells == [
        ["sync id", "daemon", "interface", "records told", "records taken", "heard", "waiting"],
        ["7", "master", "eth2", "120", "-", "-", "3"],
        ["8", "master, not led", "eth2", "0", "-", "-", "3"],
        ["7, 8", "backup", "eth3", "-", "45", "0.4 s ago", "-"],
        ["7, 8", "backup", "eth3", "-", "45", "never", "-"],
    ]


def test_without_daemons_nothing_is_said_of_them() -> None:
    assert shown({"daemons": {"masters": [], "backups": []}}) == shown({})


@pytest.mark.parametrize(
    "status",
    [
        None,
        [],
        {},
        {"uptime_seconds": float("nan"), "node": "[/bold]"},
        {"routers": [], "services": 5, "sync": None, "drops": "many"},
        {
            "routers": {"a": None},
            "services": {"a": None},
            "sync": {"a": None},
            "drops": {"[/x]": 1},
        },
        {"routers": {"a": {"peer": {}, "virtual_addresses": 3, "state": None}}},
        {"services": {"a": {"servers": [None, 3, {}]}}},
        {"sync": {"a": {"peers": {"b": None}, "lag": {"oldest_ms": "late"}}}},
        {"sync": {"a": {"peers": [None], "lag": []}}},
        {"daemons": {"masters": 3, "backups": {}}},
        {"daemons": {"masters": [None, {}], "backups": [5, {"counters": 1, "sync_ids": None}]}},
    ],
)
def test_what_is_missing_or_strange_is_never_an_error(status: object) -> None:
    assert "connections" in shown(status)


def test_trackers_groups_and_changed_priorities_are_shown() -> None:
    text = shown(
        {
            "routers": {"web": {"state": "BACKUP", "priority": 90, "configured_priority": 150}},
            "tracking": {
                "trackers": {
                    "gw": {
                        "kind": "gateway",
                        "state": "down",
                        "since_seconds": 3.0,
                        "detail": "gateway [fd00::1] does not answer",
                    },
                    "check": {"kind": "script", "state": "up", "detail": ""},
                },
                "groups": {"all": {"state": "BACKUP", "routers": ["web", "mail"]}},
            },
        }
    )
    assert "90 of 150" in text
    assert re.search(r"gw +gateway +down +3\.0 s +gateway \[fd00::1\] does not answer", text)
    assert re.search(r"check +script +up +- +-", text)
    assert "group all: BACKUP (web, mail)" in text


def test_servers_that_are_checked_have_their_health_beside_them() -> None:
    down = {"opinion": "down", "since_seconds": 3.0, "reason": "[/]status 500"}
    services = {
        "web": {
            "address": "192.0.2.1:80",
            "health": {"quorum": "lost"},
            "servers": [
                {"address": "10.1.0.1:80", "weight": 0, "health": down},
                {"address": "10.1.0.2:80", "health": {"opinion": "up", "since_seconds": 200}},
                {"address": "10.1.0.3:80", "health": None},
                {"address": "10.1.0.4:80", "health": 7},
            ],
        },
        "unchecked": {"servers": [{"address": "10.1.0.9:80"}]},
    }
    text = shown({"services": services})
    assert "quorum lost" in text
    assert "down for 3.0 s: [/]status 500" in text
    assert "up for 3 min: -" in text
    assert re.search(r"10\.1\.0\.3:80 .* -\s*$", text, re.MULTILINE)
    assert "health" not in shown(STATUS)
