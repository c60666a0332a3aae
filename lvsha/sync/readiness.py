"""How much of what a node has would survive it: figures for an operator.

A connection is covered by a peer if that peer has it, in some state, as this node told it.
What is not covered: established connections that were not told yet (a rule of their service
has them wait), changes that wait to be sent, and what is on its way. Of a peer that is still
behind, what is in the buckets that it wants counts as not there.

Times are seconds on a monotonic clock; figures are in the units that their names say.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from lvsha.model import BUCKETS
from lvsha.sync.copy import Copy
from lvsha.sync.messages import (
    LEVEL_PLAIN,
    Heartbeat,
    Origin,
    PeerState,
    Role,
    Standing,
)
from lvsha.sync.peers import Peer
from lvsha.sync.source import Source
from lvsha.tally import Tally


def standing(copy: Copy, source: Source, tally: Tally) -> Standing:
    """What a node says of itself in its heartbeats."""
    return replace(
        lacking(copy),
        told=tally.told,
        total=tally.total,
        is_current=not source.queued,
        established=tally.established,
        exposed=tally.exposed,
    )


def lacking(copy: Copy) -> Standing:
    """What a node says of a copy whose connections it does not count apart from others."""
    stream = None if copy.leader is None else copy.leader.stream
    return Standing(
        missing=0 if stream is None else stream.missing,
        wanted=copy.catching_up.wanted.bit_count(),
        mismatched=copy.catching_up.mismatched.bit_count(),
        lost=0 if stream is None else stream.lost_total,
        repaired=0 if stream is None else stream.repaired_total,
    )


def following(copy: Copy) -> tuple[str, PeerState, int]:
    """Whom a node follows, how, and how far it is with that one's stream."""
    leader = copy.leader
    if leader is None:
        return "", PeerState.PROBE, 0
    return leader.node, leader.state, leader.stream.position


def of_a_follower(
    copy: Copy, origin: Origin, digest: bytes, level: int, heard: tuple[int, ...]
) -> Heartbeat:
    """The heartbeat of a node that only follows, and has no connections to tell of."""
    return Heartbeat(
        origin,
        0,
        digest,
        *following(copy),
        copy.complete,
        level=level,
        speaks=level,
        oldest=1,
        heard=heard,
        standing=lacking(copy),
    )


def _unseen(peer: Peer, source: Source, now: float) -> tuple[int, float]:
    """How many changes a peer has not seen, and for how long the oldest of them has waited."""
    # Either may be the newer word: a heartbeat tells it, too.
    position = max(peer.position, peer.acknowledged or 0)
    changes, since = source.history.after(position)
    # What is missing there was sent before; how much it told is not known of each.
    changes += round(peer.standing.missing * source.history.mean_changes)
    oldest = max(source.age_of_oldest(now), 0.0 if since is None else now - since)
    return changes + source.queued, oldest


def _coverage(peer: Peer, source: Source, tally: Tally, now: float) -> float:
    """The share of the established connections that a peer has; 1 if there are none."""
    if not tally.established:
        return 1.0
    lacking, _ = _unseen(peer, source, now)
    lacking += tally.exposed
    if peer.state is PeerState.PROBE:
        lacking += max(tally.told - peer.standing.told, 0)
    behind = peer.standing.wanted + peer.standing.mismatched
    lacking += round(tally.told * behind / BUCKETS)
    return max(0.0, 1 - lacking / tally.established)


def coverage(home: Copy, source: Source, tally: Tally, now: float) -> float:
    """That of the follower that has most, since one is enough; 0 without any."""
    followers = _followers(home, source)
    return max((_coverage(peer, source, tally, now) for peer in followers), default=0.0)


def readiness(home: Copy, source: Source, tally: Tally, now: float) -> dict[str, object] | None:
    """What would survive if this node died now; None if it does not lead."""
    if source.role is not Role.LEAD:
        return None
    lags = [_unseen(peer, source, now) for peer in _followers(home, source)]
    changes, oldest = min(lags, default=(source.queued, source.age_of_oldest(now)))
    return {
        "coverage": round(coverage(home, source, tally, now), 6),
        "established": tally.established,
        "at_risk": tally.exposed,
        "lag_connections": changes,
        "lag_ms": round(1000 * oldest, 3),
    }


def _followers(home: Copy, source: Source) -> list[Peer]:
    node = source.origin.node
    return [peer for peer in home.peers if peer.leader == node and not peer.silent]


def unready(peer: Peer, leader: str, tally: Tally, differing: Mapping[str, Collection[str]]) -> str:
    """Why a peer cannot lead next without a loss, as words for an operator; empty if it can.

    Args:
        peer: which.
        leader: this node.
        tally: of what it leads.
        differing: names of what is configured otherwise, by node.
    """
    if peer.silent:
        return "is not heard"
    if peer.leader != leader:
        return f"follows {peer.leader or 'nobody'}"
    if peer.state is not PeerState.REPLICATE or not peer.complete:
        return (
            f"has no complete copy yet ({peer.state.name}, {peer.standing.told:,} of "
            f"{tally.told:,} connections)"
        )
    if peer.level <= LEVEL_PLAIN:
        return "is of a version that knows no handover"
    if peer.node in differing:
        return f"is configured otherwise ({', '.join(differing[peer.node]) or '?'})"
    if peer.standing.mismatched:
        return f"has {peer.standing.mismatched} buckets of connections that differ"
    return ""


def replica_status(
    home: Copy, others: Mapping[int, Copy], source: Source, tally: Tally, now: float
) -> dict[str, object]:
    """What there is to see of a replica's halves, as JSON values."""
    leader = home.leader
    copies = ((tally.sync_id, home), *sorted(others.items()))
    return {
        "sync_id": source.origin.sync_id,
        "node": source.origin.node,
        "epoch": source.origin.epoch,
        "role": source.role.name,
        "term": source.term,
        "sequence": source.sequence,
        "level": source.level,
        "leader": None if leader is None else leader.node,
        "connections": tally.connections,
        "told": tally.told,
        "established": tally.established,
        "at_risk": tally.exposed,
        "lag": {
            "changes_queued": source.queued,
            "oldest_ms": round(1000 * source.age_of_oldest(now), 3),
        },
        "snapshotting": source.is_snapshotting,
        "readiness": readiness(home, source, tally, now),
        "peers": [
            peer_status(peer, sync_id, source, tally, now)
            for sync_id, copy in copies
            for peer in copy.peers
        ],
    }


def peer_status(
    peer: Peer, sync_id: int, source: Source, tally: Tally, now: float
) -> dict[str, object]:
    """All that is known of a peer, as JSON values."""
    status: dict[str, object] = {
        "node": peer.node,
        "sync_id": sync_id,
        "epoch": peer.epoch,
        "role": peer.role.name,
        "term": peer.term,
        "level": peer.level,
        "state": peer.state.name,
        "silent": peer.silent,
        "heard_ms_ago": round(1000 * (now - peer.heard), 3),
        "connections": peer.connections,
        "complete": peer.complete,
        "follows": peer.leader or None,
        "position": peer.position,
        "sequence": peer.stream.position,
        "gaps": peer.stream.gaps,
        "datagrams_missing": peer.stream.missing,
        "datagrams_lost": peer.stream.lost_total,
        "datagrams_repaired": peer.stream.repaired_total,
        "reported": {
            "datagrams_missing": peer.standing.missing,
            "datagrams_lost": peer.standing.lost,
            "datagrams_repaired": peer.standing.repaired,
            "buckets_wanted": peer.standing.wanted,
            "buckets_mismatched": peer.standing.mismatched,
        },
    }
    if source.role is Role.LEAD and peer.leader == source.origin.node:
        changes, oldest = _unseen(peer, source, now)
        status |= {
            "coverage": round(_coverage(peer, source, tally, now), 6),
            "lag_connections": changes,
            "lag_ms": round(1000 * oldest, 3),
        }
    return status
