"""Put datagrams together that came in fragments (RFC 791, RFC 815; RFC 8200, section 4.5).

The ports are in the first fragment only, so a director that knows connections has to
collect a datagram before it can say whose it is. This module does that, for IPv4 and for
IPv6; `lvsha.datapath.segmentation` cuts the datagram again.

What always holds, whatever the sender does:

* No byte is taken from two fragments. One that lies wholly within bytes that are there
  already is a duplicate and forgotten; any other overlap is an attack, and the datagram
  with all its fragments is forgotten (RFC 5722, which the kernel applies to IPv4 too).
* Memory is bounded by ``limit_bytes``, counted with what Python needs around the bytes,
  and datagrams by ``limit_datagrams``. Past a limit the datagram that waited longest is
  forgotten, of either family: an honest one is complete within milliseconds, so a flood
  hits first what will never be complete. (The kernel refuses new ones instead, and then
  a flood shuts out everybody until it times out.)
* A fragment costs a search in a sorted list of at most `FRAGMENTS_MAX` runs, and the
  joining of a datagram is paid by its fragments. A datagram of more fragments than that
  is forgotten.
* Every fragment that is taken in comes out in a datagram or is counted: the caller counts
  the one for which `Reassembler.add` returns a reason, and this module those that were
  waiting.

Times are seconds on a monotonic clock. A datagram's time runs from its first fragment to
arrive, and fragments that follow do not prolong it. Lengths and offsets are in bytes.
"""

from bisect import bisect_right
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

from lvsha.datapath.fragments import Fragment, read, whole
from lvsha.datapath.reasons import Reason

IPV4_SECONDS: Final = 30.0
"""``net.ipv4.ipfrag_time``."""
IPV6_SECONDS: Final = 60.0
"""``net.netfilter.nf_conntrack_frag6_timeout``."""
LIMIT_BYTES: Final = 4 << 20
"""``net.ipv4.ipfrag_high_thresh``."""
LIMIT_DATAGRAMS: Final = 2048
FRAGMENTS_MAX: Final = 1365
"""The largest IPv4 datagram, cut for the smallest MTU: 65515 bytes in pieces of 48."""
EXPIRED_MAX: Final = 64
"""How many datagrams one call of `Reassembler.expire` gives up."""

_DATAGRAM_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Reassembled:
    """A whole datagram and how it came.

    Attributes:
        packet: the IP packet without a trace of fragmentation but for ``dont_fragment``.
        largest: the length of the largest fragment, headers included.
        dont_fragment: IPv4: the largest fragment forbade fragmentation, and so does
            ``packet``.
        pieces: the lengths of the payload in the fragments, by position.
    """

    packet: bytes
    largest: int
    dont_fragment: bool
    pieces: tuple[int, ...]


class _Datagram:
    """The fragments of one datagram so far; runs are the stretches without a gap."""

    __slots__ = (
        "ecns",
        "end",
        "first",
        "largest",
        "largest_unfragmentable",
        "last_seen",
        "memory",
        "payloads",
        "run_ends",
        "run_starts",
        "since",
    )

    def __init__(self, now: float) -> None:
        self.since = now
        self.payloads: dict[int, bytes] = {}
        self.run_starts: list[int] = []
        self.run_ends: list[int] = []
        self.first: Fragment | None = None
        self.end = 0
        self.last_seen = False
        self.largest = 0
        self.largest_unfragmentable = 0
        self.ecns = 0
        self.memory = _DATAGRAM_BYTES

    @property
    def complete(self) -> bool:
        return self.last_seen and self.run_starts == [0] and self.run_ends == [self.end]

    def contradicts(self, fragment: Fragment) -> bool:
        """Whether a fragment disagrees about where the datagram ends."""
        if fragment.more:
            return self.last_seen and fragment.end > self.end
        return fragment.end < self.end or (self.last_seen and fragment.end != self.end)

    def place(self, fragment: Fragment) -> Reason | None:
        """Take a fragment in, unless it covers bytes that are there."""
        offset, end = fragment.offset, fragment.end
        starts, ends = self.run_starts, self.run_ends
        after = bisect_right(starts, offset)
        if after and ends[after - 1] > offset:
            return Reason.FRAGMENT if end <= ends[after - 1] else Reason.FRAGMENT_OVERLAP
        if after < len(starts) and starts[after] < end:
            return Reason.FRAGMENT_OVERLAP
        joins_before = after > 0 and ends[after - 1] == offset
        joins_after = after < len(starts) and starts[after] == end
        if joins_before and joins_after:
            ends[after - 1] = ends[after]
            del starts[after], ends[after]
        elif joins_before:
            ends[after - 1] = end
        elif joins_after:
            starts[after] = offset
        else:
            starts.insert(after, offset)
            ends.insert(after, end)
        self._note(fragment)
        return None

    def _note(self, fragment: Fragment) -> None:
        self.payloads[fragment.offset] = fragment.payload()
        self.memory += fragment.memory
        if fragment.offset == 0:
            self.first = fragment
        self.end = max(self.end, fragment.end)
        self.last_seen = self.last_seen or not fragment.more
        self.largest = max(self.largest, fragment.length)
        if fragment.dont_fragment:
            self.largest_unfragmentable = max(self.largest_unfragmentable, fragment.length)
        self.ecns |= 1 << fragment.ecn

    def join(self) -> Reassembled | Reason:
        """The datagram; a reason where the whole is more than a packet can be."""
        assert self.complete
        assert self.first is not None
        pieces = [self.payloads[offset] for offset in sorted(self.payloads)]
        dont_fragment = self.largest_unfragmentable == self.largest
        packet = whole(self.first, pieces, self.ecns, dont_fragment=dont_fragment)
        if packet is None:
            return Reason.FRAGMENT_MALFORMED
        return Reassembled(packet, self.largest, dont_fragment, tuple(map(len, pieces)))


class Reassembler:
    """The datagrams that are not complete.

    Args:
        drops: counts the fragments that waited in vain, by reason.
        limit_bytes: how much memory they may take, in all.
        limit_datagrams: how many they may be.
    """

    def __init__(
        self,
        drops: Counter[Reason],
        *,
        limit_bytes: int = LIMIT_BYTES,
        limit_datagrams: int = LIMIT_DATAGRAMS,
    ) -> None:
        self._drops = drops
        self._limit_bytes = limit_bytes
        self._limit_datagrams = limit_datagrams
        self._memory = 0
        # In order of arrival, which within a family is the order of the deadlines.
        self._ipv4: OrderedDict[bytes, _Datagram] = OrderedDict()
        self._ipv6: OrderedDict[bytes, _Datagram] = OrderedDict()

    def __len__(self) -> int:
        """How many datagrams wait for fragments."""
        return len(self._ipv4) + len(self._ipv6)

    @property
    def memory_bytes(self) -> int:
        """What they take, as it counts against the limit."""
        return self._memory

    @property
    def deadline(self) -> float | None:
        """When to call `expire`; None for never."""
        deadlines = [
            next(iter(waiting.values())).since + seconds
            for waiting, seconds in self._families()
            if waiting
        ]
        return min(deadlines, default=None)

    def add(self, packet: bytes, now: float) -> Reassembled | Reason | None:
        """Take one fragment in: a whole IPv4 packet, or an IPv6 packet with a fragment header.

        Returns:
            The datagram, if this fragment completes it; None if it waits for others; or the
            reason why this fragment was forgotten, `Reason.FRAGMENT` for a duplicate and
            for what is no fragment.
        """
        fragment = read(packet)
        if isinstance(fragment, Reason):
            return fragment
        if fragment.offset == 0 and not fragment.more:
            return _alone(fragment)
        waiting, seconds = self._families()[1 if fragment.named_at else 0]
        datagram = waiting.get(fragment.key)
        if datagram is not None and now >= datagram.since + seconds:
            self._forget(waiting, fragment.key, Reason.FRAGMENT_TIMEOUT)
            datagram = None
        if not self._make_room(fragment.memory, another=datagram is None):
            return Reason.FRAGMENTS_FULL
        if datagram is None:
            datagram = waiting[fragment.key] = _Datagram(now)
            self._memory += datagram.memory
        elif fragment.key not in waiting:
            return Reason.FRAGMENTS_FULL
        return self._add_to(datagram, waiting, fragment)

    def expire(self, now: float) -> list[bytes]:
        """Forget datagrams whose time is over, at most `EXPIRED_MAX` of them.

        Returns:
            The first fragments of those of which it came, as they came: their senders may
            be told with ICMP time exceeded, code 1 (RFC 792; RFC 4443, section 3.3).
        """
        firsts: list[bytes] = []
        left = EXPIRED_MAX
        for waiting, seconds in self._families():
            while waiting and left:
                key, datagram = next(iter(waiting.items()))
                if now < datagram.since + seconds:
                    break
                left -= 1
                if datagram.first is not None:
                    firsts.append(datagram.first.packet)
                self._forget(waiting, key, Reason.FRAGMENT_TIMEOUT)
        return firsts

    def _families(self) -> tuple[tuple[OrderedDict[bytes, _Datagram], float], ...]:
        return (self._ipv4, IPV4_SECONDS), (self._ipv6, IPV6_SECONDS)

    def _add_to(
        self, datagram: _Datagram, waiting: OrderedDict[bytes, _Datagram], fragment: Fragment
    ) -> Reassembled | Reason | None:
        if datagram.contradicts(fragment):
            # Linux gives an IPv4 datagram up, but of an IPv6 one only the fragment.
            if waiting is self._ipv4:
                self._forget(waiting, fragment.key, Reason.FRAGMENT_MALFORMED)
            return Reason.FRAGMENT_MALFORMED
        if len(datagram.payloads) == FRAGMENTS_MAX:
            self._forget(waiting, fragment.key, Reason.FRAGMENTS_FULL)
            return Reason.FRAGMENTS_FULL
        refused = datagram.place(fragment)
        if refused is not None:
            if refused is not Reason.FRAGMENT:
                self._forget(waiting, fragment.key, refused)
            return refused
        self._memory += fragment.memory
        if not datagram.complete:
            return None
        del waiting[fragment.key]
        self._memory -= datagram.memory
        result = datagram.join()
        if isinstance(result, Reason):
            self._drops[result] += len(datagram.payloads) - 1
        return result

    def _make_room(self, memory: int, *, another: bool) -> bool:
        """Forget the datagrams that waited longest until a fragment fits within the limits."""
        memory += _DATAGRAM_BYTES if another else 0
        while self._memory + memory > self._limit_bytes or (
            another and len(self) >= self._limit_datagrams
        ):
            families = [waiting for waiting, _ in self._families() if waiting]
            if not families:
                return False
            oldest = min(families, key=lambda waiting: next(iter(waiting.values())).since)
            self._forget(oldest, next(iter(oldest)), Reason.FRAGMENTS_FULL)
        return True

    def _forget(self, waiting: OrderedDict[bytes, _Datagram], key: bytes, reason: Reason) -> None:
        datagram = waiting.pop(key)
        self._memory -= datagram.memory
        self._drops[reason] += len(datagram.payloads)


def _alone(fragment: Fragment) -> Reassembled:
    """An IPv6 packet with a fragment header that is no fragment (RFC 6946): it waits for none."""
    payload = fragment.payload()
    packet = whole(fragment, [payload], 1 << fragment.ecn, dont_fragment=False)
    assert packet is not None, "it is shorter than what came"
    return Reassembled(packet, fragment.length, False, (len(payload),))
