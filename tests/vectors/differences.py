"""Where lvsha is meant to do otherwise than the recorded kernel, each with its reason.

A difference covers steps by scenario and by what the step is called (its note, else its kind
or command). docs/differences-from-ipvs.md says the same to people. What stands here and no
longer differs is an error, too: see `test_every_stated_difference_is_still_one`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.reader import faults
from tests.vectors.recordings import Step
from tests.vectors.rerun import Outcome

HOST = "the host's own stack sends this, not the director, which leaves the packet to it"
KEPT_FROM_HOST = (
    "the host's own forwarding sends this on; lvsha keeps from its host what real servers send "
    "from a service's port, so that no answer leaves with a real server's address"
)
COUNTED_TOO = "the ICMPv6 errors that the kernel drops are forwarded here, and so counted"
PSEUDO_HEADER_FORGOTTEN = (
    "the kernel verifies the checksum of an ICMPv6 error for NAT without its pseudo-header, and "
    "so drops every right one; lvsha translates it"
)
SHIFTS_TOLD = (
    "the kernel's connection tracking keeps how far the numbers of an FTP dialogue have moved, and "
    "does not tell it; lvsha keeps and tells it"
)
NEVER_A_SERVICE = (
    "a kernel in which no service was ever added looks at no packet; lvsha forwards those of "
    "connections that it was told of"
)
FLOOD = "the flood that these counters were recorded with is not in the recording"


@dataclass(frozen=True, slots=True)
class Difference:
    """Steps at which lvsha is meant to differ.

    Attributes:
        kind: of recording; scenario and step are patterns for names.
        instead: what lvsha does: it leaves the packet to its host (``accepted``), drops it
            (``dropped``), or sends one packet without fault ``to client``; ``anything`` where
            the step is about something else.
    """

    kind: str
    scenario: str
    step: str
    reason: str
    instead: str = "accepted"


DIFFERENCES: Sequence[Difference] = (
    Difference("forward", r".*", r"to a port of no service|echo request to the VIP", HOST),
    Difference(
        "forward",
        r"nat-.*|removed-.*",
        r"server packet from another port|server packet of no connection, removed server",
        HOST,
    ),
    Difference("forward", r"nat-(tcp|udp|sctp)", r"server-side ICMP error: param", HOST),
    Difference("forward", r"removed-.*", r"ACK after the service was removed", HOST),
    Difference(
        "forward",
        r"nat-.*|removed-.*",
        r"server packet of no connection(, present server)?",
        KEPT_FROM_HOST,
        "dropped",
    ),
    Difference("forward", r"removed-.*", r"answer (of server|after the service) .*", HOST),
    Difference(
        "forward",
        r"nat-.*-v6",
        r"server-side ICMP error(: \w+| with the whole packet in it)",
        PSEUDO_HEADER_FORGOTTEN,
        "to client",
    ),
    Difference("forward", r"nat-.*-v6", r"ipvsadm .*--stats.*", COUNTED_TOO, "anything"),
    Difference("persist", r"any-port|fwmark-before-vip", r"UDP to a VIP.*|pkt", HOST),
    Difference("persist", r"ftp-port-20-lookup", r"low port", HOST),
    Difference(
        "persist", r"ops-m", r"the answer of one-packet scheduling", KEPT_FROM_HOST, "dropped"
    ),
    Difference("sync", r"ftp-nat-pasv", r"sync_out", SHIFTS_TOLD, "anything"),
    Difference(
        "sync", r"backup-.*-no-service", r".* goes on at the backup", NEVER_A_SERVICE, "anything"
    ),
    Difference("ipvsadm_text", r"large-counters", r".*", FLOOD, "anything"),
)


def named(step: Step) -> str:
    """What a step is called."""
    return step.get("note") or step.get("cmd") or step.get("path") or step["op"]


def covers(difference: Difference, kind: str, scenario: str, step: Step) -> bool:
    """Whether a difference is about a step."""
    return (
        difference.kind == kind
        and re.fullmatch(difference.scenario, scenario) is not None
        and re.fullmatch(difference.step, named(step)) is not None
    )


def stated(kind: str, scenario: str, outcome: Outcome) -> Difference | None:
    """The difference that covers an outcome, if lvsha does what it says."""
    for difference in DIFFERENCES:
        if covers(difference, kind, scenario, outcome.step):
            return difference if _as_meant(difference, outcome) else None
    return None


def _as_meant(difference: Difference, outcome: Outcome) -> bool:
    left = outcome.left
    match difference.instead:
        case "accepted":
            return not left and outcome.accepted
        case "dropped":
            return not left and not outcome.accepted
        case "anything":
            return True
        case towards:
            return [f"to {p.side}" for p in left] == [towards] and not faults(left[0].packet)
