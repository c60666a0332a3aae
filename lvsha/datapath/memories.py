"""What few connections remember beside what all of them have.

An FTP control connection remembers where its dialogue is, a template under what it stands if
its own key does not tell, and any connection what a later version of lvsha has told of it.
All of it is told to other directors, as `ConnectionDetails`.
"""

from typing import Final

from lvsha.datapath.ftp import FtpMode
from lvsha.datapath.sequence import Adjustment, SequenceDelta
from lvsha.model import TEMPLATE_BIT, ConnectionDetails, ConnectionFlag, Protocol

SIP: Final = "sip"
"""The persistence engine that there is."""
_IN_SEQUENCE: Final = int(ConnectionFlag.IN_SEQUENCE)
_OUT_SEQUENCE: Final = int(ConnectionFlag.OUT_SEQUENCE)
_NOTHING_ANSWERED: Final = (-1, FtpMode.ACTIVE)

Others = tuple[tuple[int, bytes], ...]
"""Of `ConnectionDetails`."""


class FtpDialogue:
    """What an FTP control connection remembers.

    Attributes:
        mode: what the client last asked for.
        answered: the sequence number of the last reply that was rewritten, and the mode it
            was for; the server may send it again.
        adjustment: how sequence numbers have moved.
        others: see `ConnectionDetails`.
    """

    __slots__ = ("adjustment", "answered", "mode", "others")

    def __init__(self) -> None:
        self.mode = FtpMode.ACTIVE
        self.answered = _NOTHING_ANSWERED
        self.adjustment = Adjustment()
        self.others: Others = ()

    def details(self) -> ConnectionDetails:
        """What other directors must know beside the rest."""
        adjustment = self.adjustment
        there, back = adjustment.in_, adjustment.out
        shifts: tuple[int, ...] = ()
        if adjustment.in_set or adjustment.out_set:
            shifts = (
                *(there.init_seq, there.delta, there.previous_delta),
                *(back.init_seq, back.delta, back.previous_delta),
            )
        dialogue: tuple[int, ...] = ()
        if self.answered is not _NOTHING_ANSWERED:
            sequence, mode = self.answered
            dialogue = (self.mode.value, sequence, mode.value)
        elif self.mode is not FtpMode.ACTIVE:
            dialogue = (self.mode.value,)
        return ConnectionDetails(shifts=shifts, dialogue=dialogue, others=self.others)

    def take_over(self, flags: int, details: ConnectionDetails | None) -> None:
        """Go on where another director is.

        Args:
            flags: of the connection there; they say which shifts count.
            details: of its record, in which numbers are as `ConnectionDetails` has them.
        """
        adjustment = self.adjustment
        adjustment.in_set = bool(flags & _IN_SEQUENCE)
        adjustment.out_set = bool(flags & _OUT_SEQUENCE)
        self.mode, self.answered = FtpMode.ACTIVE, _NOTHING_ANSWERED
        if details is None:
            return
        if details.shifts:
            adjustment.in_ = SequenceDelta(*details.shifts[:3])
            adjustment.out = SequenceDelta(*details.shifts[3:])
        if details.dialogue:
            self.mode = FtpMode(details.dialogue[0])
            if len(details.dialogue) > 1:
                self.answered = (details.dialogue[1], FtpMode(details.dialogue[2]))


class TemplateIdentity:
    """Under what a template stands in the table, where its own key does not tell.

    That is where a persistence engine has found something, and where it was poisoned.

    Attributes:
        key: its key in the table and in its record; behind it what the engine found.
        found: that alone: the Call-ID.
        others: see `ConnectionDetails`.
    """

    __slots__ = ("found", "key", "others")

    def __init__(self, key: bytes, found: bytes) -> None:
        self.key = key
        self.found = found
        self.others: Others = ()

    def details(self) -> ConnectionDetails:
        """What other directors must know beside the rest."""
        return ConnectionDetails(engine=SIP if self.found else "", others=self.others)


class Unread:
    """What a later version has told of a connection, and this one cannot read.

    Attributes:
        others: see `ConnectionDetails`.
    """

    __slots__ = ("others",)

    def __init__(self, others: Others) -> None:
        self.others = others

    def details(self) -> ConnectionDetails:
        """What other directors must know beside the rest."""
        return ConnectionDetails(others=self.others)


def mark_of_template(key: bytes) -> int:
    """The firewall mark of the service of a template, which stands in its key; 0 for none."""
    if key[1] != Protocol.IP:
        return 0
    return int.from_bytes(key[6:10] if key[0] & ~TEMPLATE_BIT == 4 else key[18:22])
