"""Show a director's status on a terminal.

The input is the JSON of the control socket, perhaps of another version of lvsha, so what is
not there is shown as a dash and never an error.
"""

import math
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES: Final = {"MASTER": "bold green", "BACKUP": "cyan", "FAULT": "bold red", "INIT": "dim"}
_OPINIONS: Final = {"up": "green", "down": "bold red"}
_DASH: Final = "-"
REFUSED_LATELY: Final = 60.0
"""Seconds for which a VRRP message that was refused is news."""


def show_status(status: object, console: Console) -> None:
    """Print the state of routers, sync, services and drops."""
    console.print(
        Text.assemble(
            (_text(status, "node"), "bold"),
            f"  lvsha {_text(status, 'version')}, up "
            f"{_seconds(_get(status, 'uptime_seconds'))}, "
            f"{_text(status, 'connections')} connections",
        )
    )
    routers = _items(_get(status, "routers"))
    if routers:
        console.print(_routers(routers))
        for line in _missing_routes(routers):
            console.print(Text(line, style="bold red"))
        for line in (*_unheard(_get(status, "takeovers")), *_refusals(routers)):
            console.print(Text(line, style="yellow"))
        for line in _alarms(routers, _get(_get(status, "second_path"), "fencing")):
            console.print(Text(line, style="bold red"))
    trackers = _items(_get(_get(status, "tracking"), "trackers"))
    if trackers:
        console.print(_trackers(trackers))
    groups = _items(_get(_get(status, "tracking"), "groups"))
    for name, group in groups:
        members = _list(_get(group, "routers"))
        state = _text(group, "state")
        console.print(
            Text.assemble(f"group {name}: ", (state, _STYLES.get(state, "")), f" ({members})")
        )
    services = _items(_get(status, "services"))
    if services:
        console.print(_services(services))
    sync = _items(_get(status, "sync"))
    if sync:
        console.print(_sync(sync))
    daemons = _daemon_rows(_get(status, "daemons"))
    if daemons:
        console.print(_daemons(daemons))
    life = _get(status, "life")
    if life is not None:
        console.print(_life(life))
    drops = _items(_get(status, "drops"))
    if drops:
        console.print(Text("dropped: " + ", ".join(f"{name} {count}" for name, count in drops)))


def show_receipts(receipts: object, console: Console) -> None:
    """Print what a handover has brought."""
    for receipt in receipts if isinstance(receipts, list) else []:
        routers = _get(receipt, "routers")
        names = ", ".join(map(str, routers)) if isinstance(routers, list) else _DASH
        successor = _get(receipt, "successor")
        if successor is None:
            console.print(f"{names}: resigned; whoever is a backup takes over")
        else:
            console.print(
                f"{names}: {successor} took over after {_text(receipt, 'taken_over_ms')} ms, "
                f"gap {_text(receipt, 'gap_ms')} ms"
            )
        console.print(
            f"  {_text(receipt, 'connections')} established connections carried, "
            f"{_text(receipt, 'lost')} lost"
        )


def _routers(routers: list[tuple[str, object]]) -> Table:
    table = _table("virtual router", "vrid", "state", "for", "priority", "addresses", "peer")
    for name, router in routers:
        state = _text(router, "state")
        peer = _get(router, "peer")
        heard = (
            f"{_text(peer, 'address')} priority {_text(peer, 'priority')}, heard "
            f"{_seconds(_get(peer, 'heard_seconds_ago'))} ago"
        )
        fault = _get(router, "fault")
        _add_row(
            table,
            name,
            _text(router, "vrid"),
            Text(state + (f": {fault}" if fault else ""), style=_STYLES.get(state, "")),
            _seconds(_get(router, "since_seconds")),
            _priority(router),
            _list(_get(router, "virtual_addresses")),
            heard if isinstance(peer, dict) else _DASH,
        )
    return table


def _priority(router: object) -> str:
    """The priority, and the configured one where trackers have changed it."""
    priority, configured = _get(router, "priority"), _get(router, "configured_priority")
    if configured in {None, priority}:
        return _text(router, "priority")
    return f"{priority} of {configured}"


def _trackers(trackers: list[tuple[str, object]]) -> Table:
    table = _table("tracker", "kind", "state", "for", "says")
    for name, tracker in trackers:
        state = _text(tracker, "state")
        style = {"up": "green", "down": "bold red"}.get(state, "dim")
        _add_row(
            table,
            name,
            _text(tracker, "kind"),
            Text(state, style=style),
            _seconds(_get(tracker, "since_seconds")),
            _text(tracker, "detail") if _get(tracker, "detail") else _DASH,
        )
    return table


def _alarms(routers: list[tuple[str, object]], fencing: object) -> list[str]:
    """What the second path says that somebody should look at, and who is not fenced."""
    lines = [
        f"{name}: second path: {_text(path, 'verdict')}: {_text(path, 'reason')}"
        for name, router in routers
        if _get(path := _get(router, "second_path"), "alarm") is True
    ]
    for name, router in routers:
        if _get(router, "awaits_consent") is not True:
            continue
        lines += [
            f"{name}: waits for fencing of {peer}: {_text(attempt, 'state')}"
            + (f", {outcome}" if (outcome := _get(attempt, "outcome")) else "")
            for peer, attempt in _items(_get(fencing, "peers"))
            if _get(attempt, "state") != "fenced"
        ]
    return lines


def _unheard(takeovers: object) -> list[str]:
    """The virtual routers of whose addresses no frame has come since this node took them."""
    return [
        f"{name}: no frame for its addresses has come since the takeover"
        for name, takeover in _items(takeovers)
        if _get(takeover, "frames") == "silent"
    ]


def _life(life: object) -> Text:
    """How the loop that forwards is, and who watches over it."""
    fault, watchdog = _get(life, "fault"), _get(life, "watchdog_seconds")
    late = _get(life, "lateness_max_seconds")
    words = [f"latest turn {1000 * late:.0f} ms late"] if isinstance(late, int | float) else []
    words.append(f"watchdog {_seconds(watchdog)}" if watchdog else "no watchdog")
    if fault is None:
        return Text(f"forwarding loop: {', '.join(words)}")
    return Text(f"forwarding loop: {fault}, {', '.join(words)}", style="bold red")


def _missing_routes(routers: list[tuple[str, object]]) -> list[str]:
    """Which routes and rules could not be added or removed, and why."""
    lines = []
    for name, router in routers:
        pieces = _get(_get(router, "routes"), "pieces")
        for piece in pieces if isinstance(pieces, list) else ():
            if _get(piece, "error"):
                what = f"{_text(piece, 'kind')} {_text(piece, 'what')}"
                lines.append(f"{name}: {what} was refused: {_text(piece, 'error')}")
    return lines


def _refusals(routers: list[tuple[str, object]]) -> list[str]:
    """Whose VRRP messages are being refused, and why."""
    lines = []
    for name, router in routers:
        last = _get(router, "last_refused")
        ago = _get(last, "heard_seconds_ago")
        if not isinstance(ago, int | float) or ago > REFUSED_LATELY:
            continue
        details = [
            f"{key} {value}"
            for key, value in _items(last)
            if key not in {"cause", "address", "heard_seconds_ago"}
        ]
        why = f" ({', '.join(details)})" if details else ""
        lines.append(
            f"{name}: messages of {_text(last, 'address')} are refused for their "
            f"{_text(last, 'cause').replace('_', ' ')}{why}, {_seconds(ago)} ago"
        )
    return lines


def _services(services: list[tuple[str, object]]) -> Table:
    columns = ("service", "at risk", "server", "method", "weight", "active", "inactive", "opened")
    checked = any(_get(service, "health") is not None for _, service in services)
    table = _table(*columns, *(("health",) if checked else ()))
    for name, service in services:
        title = f"{_service(name, service)} {_text(service, 'scheduler')}"
        quorum = _text(_get(service, "health"), "quorum")
        title += f", quorum {quorum}" if quorum in {"lost", "unknown"} else ""
        own = (title, _text(service, "at_risk"))
        servers = _get(service, "servers")
        for server in servers if isinstance(servers, list) and servers else [None]:
            _add_row(
                table,
                *own,
                _text(server, "address"),
                _text(server, "method"),
                "leaving" if _get(server, "leaving") else _text(server, "weight"),
                *(_text(server, key) for key in ("active", "inactive", "connections")),
                *((_health(_get(server, "health")),) if checked else ()),
            )
            own = ("", "")
    return table


def _health(health: object) -> Text:
    """What the checks of a server say; a dash for one without checks."""
    opinion = _text(health, "opinion")
    if health is None:
        return Text(opinion)
    text = f"{opinion} for {_seconds(_get(health, 'since_seconds'))}: {_text(health, 'reason')}"
    elsewhere = [(node, said) for node, said in _items(_get(health, "peers")) if said != opinion]
    if elsewhere:
        text += f" ({', '.join(f'{node}: {said}' for node, said in elsewhere)})"
    return Text(text, style=_OPINIONS.get(opinion, ""))


def _service(name: str, service: object) -> str:
    """A service by name and address; one that was added at run time is called by its address."""
    address = _text(service, "address")
    protocol = _get(service, "protocol")
    end = address if protocol is None else f"{protocol} {address}"
    return end if name.lower() == end.lower() else f"{name} {end}"


def _sync(sync: list[tuple[str, object]]) -> Table:
    table = _table(
        "sync id", "role", "copy", "would survive", "at risk", "queued",
        "peer", "peer is", "copy is", "lag", "lost / repaired",
    )  # fmt: skip
    for sync_id, replica in sync:
        own: tuple[str, ...] = (
            sync_id,
            _text(replica, "role"),
            "complete" if _get(replica, "complete") else "incomplete",
            _share(_get(_get(replica, "readiness"), "coverage")),
            _text(replica, "at_risk"),
            _text(_get(replica, "lag"), "changes_queued"),
        )
        peers = _get(replica, "peers")
        for peer in peers if isinstance(peers, list) and peers else [None]:
            _add_row(table, *own, *_peer(peer))
            own = ("",) * len(own)
    return table


def _peer(peer: object) -> tuple[str, ...]:
    reported = _get(peer, "reported")
    buckets = _get(reported, "buckets_mismatched")
    state = _text(peer, "state") + (f", {buckets} buckets differ" if buckets else "")
    lag = _get(peer, "lag_ms")
    behind = (
        f"{lag:.0f} ms, {_text(peer, 'lag_connections')}" if isinstance(lag, int | float) else _DASH
    )
    # What a follower of ours has missed it says itself; of a leader we know it.
    missed = reported if _get(peer, "lag_ms") is not None else peer
    return (
        _text(peer, "node"),
        "silent" if _get(peer, "silent") is True else _text(peer, "role"),
        state,
        behind,
        f"{_text(missed, 'datagrams_lost')} / {_text(missed, 'datagrams_repaired')}",
    )


def _daemon_rows(daemons: object) -> list[tuple[str, ...]]:
    """The daemons that speak the kernel's protocol, the masters first."""
    rows: list[tuple[str, ...]] = []
    for daemon in _values(_get(daemons, "masters")):
        counters = _get(daemon, "counters")
        rows.append(
            (
                _text(daemon, "sync_id"),
                "master" if _get(daemon, "speaks") is not False else "master, not led",
                _text(daemon, "interface"),
                _count(counters, "records"),
                _DASH,
                _DASH,
                _text(daemon, "waiting_messages"),
            )
        )
    for daemon in _values(_get(daemons, "backups")):
        heard = _get(daemon, "heard_seconds_ago")
        rows.append(
            (
                _list(_get(daemon, "sync_ids")),
                "backup",
                _text(daemon, "interface"),
                _DASH,
                _count(_get(daemon, "counters"), "records"),
                "never" if heard is None else f"{_seconds(heard)} ago",
                _DASH,
            )
        )
    return rows


def _daemons(rows: list[tuple[str, ...]]) -> Table:
    table = _table(
        "sync id", "daemon", "interface", "records told", "records taken", "heard", "waiting"
    )
    for row in rows:
        _add_row(table, *row)
    return table


def _count(counters: object, name: str) -> str:
    """A counter; one that never counted is not there."""
    return _DASH if not isinstance(counters, dict) else str(counters.get(name, 0))


def _share(value: object) -> str:
    """A share in per cent, never rounded up to all."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return _DASH
    return f"{math.floor(value * 10_000) / 100:.2f} %"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _add_row(table: Table, *cells: str | Text) -> None:
    """Add a row as it stands; rich would take ``[fd00::1]:80`` for a style of its own."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _get(mapping: object, key: str) -> object:
    return mapping.get(key) if isinstance(mapping, dict) else None


def _items(mapping: object) -> list[tuple[str, object]]:
    return list(mapping.items()) if isinstance(mapping, dict) else []


def _values(values: object) -> list[object]:
    return values if isinstance(values, list) else []


def _text(mapping: object, key: str) -> str:
    value = _get(mapping, key)
    return _DASH if value is None else str(value)


def _list(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else _DASH


def _seconds(value: object) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return _DASH
    if value < 120:
        return f"{value:.1f} s"
    minutes, _ = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
