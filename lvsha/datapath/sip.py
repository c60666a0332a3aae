"""Find the Call-ID of a SIP message, by which a persistent service keeps a dialogue together.

This is what the kernel's persistence engine "sip" reads of a message (RFC 3261), and no
more of SIP than that. What always holds: nothing is raised, whatever the payload, and the
time taken grows with its length and no faster.

A header begins behind a line break, which may be CR, LF or both (RFC 2543 allowed each), so
the start line is never taken for one; a line that begins with a blank continues the line
before. The first header of that name, or of its compact form ``i``, decides: if its value is
not a Call-ID, the message has none, even if another one follows (RFC 3261, section 20, allows
a single one). The body is not told from the headers: a message that lacks the header may get
it from a body that quotes one.
"""

import re
from typing import Final

CALL_ID_MAX: Final = 255
"""In bytes: what fits the sync message in which directors tell each other of a template."""

# Blanks, and folds: line breaks that a blank follows (RFC 3261, section 7.3.1). A run of them can
# be read in one way only, so what follows is tried once for each of its lengths. (Possessive
# quantifiers of groups would spare that, but Python before 3.11.5 gets them wrong.)
_BLANKS: Final = rb"(?:[ \t]|(?:\r\n|[\r\n])(?=[ \t]))*"
_HEADER: Final = re.compile(rb"[\r\n](?:Call-ID|i)" + _BLANKS + rb":" + _BLANKS, re.IGNORECASE)
# RFC 3261, section 25.1: callid = word [ "@" word ].
_WORD: Final = rb"[0-9A-Za-z\-.!%*_+`'~()<>:\\\"/\[\]?{}]++"
_VALUE: Final = re.compile(_WORD + rb"(?:@" + _WORD + rb")?(?=[\r\n])")


def call_id(payload: bytes) -> bytes | None:
    """The Call-ID of a message, 1 to 255 bytes, or None if it has none or a malformed one."""
    header = _HEADER.search(payload)
    if header is None:
        return None
    value = _VALUE.match(payload, header.end())
    if value is None or value.end() - value.start() > CALL_ID_MAX:
        return None
    return value[0]
