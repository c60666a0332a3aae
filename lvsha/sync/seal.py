"""Seal sync datagrams, so that only who has the key can write or read them.

A datagram of `lvsha.sync.messages` goes in and a sealed one comes out, `SEAL_BYTES` longer;
docs/sync-protocol.md has its layout. The cipher is ChaCha20-Poly1305 (RFC 8439).

The trap of every such cipher is its nonce: two datagrams under one key and one nonce give
away both, and the means to forge a third. Two nodes share a key, and a process that starts
again has forgotten how far it had counted. So the key of the file never seals. Each
process draws a number, its session, and seals under a key of that session, which
HKDF-SHA256 (RFC 5869) makes of both; the nonce is a counter that only grows, through
changes of the key too. Both stand in each datagram in clear. The price is one derivation
for each session and key. Two processes would have to draw the same of 2^64 numbers. What
this cannot see is a machine that is put back to an earlier moment of its memory: it counts
on from there, under the same key.

What always holds:

* `Seal.open` returns the bytes that a holder of a key has sealed, or raises `SealError`.
* It returns each datagram of a session once. A session has a window: a number above all
  that came is new, one at most `WINDOW` below is looked up, an older one is refused.
* A datagram that is not authentic changes nothing and is kept nowhere. A session is
  remembered only when one of its datagrams was authentic.

What does not: a session of which this process has never heard, or that others have pushed
out of the table, is not known to be of today. Who has recorded a session can play it to a
receiver that started since. That a sender is alive now is proven one layer up, where each
side must repeat the epoch that the other one drew.

The key of the file is 32 random bytes. Of two keys the first seals and both open, so that
keys can change while datagrams are under way. Randomness is handed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lvsha.errors import SealError
from lvsha.sync.datagrams import (
    HEAD_BYTES,
    NOT_A_LENGTH,
    SEALED_VERSION,
    VERSION,
)
from lvsha.sync.messages import DATAGRAM_BYTES_MAX

KEY_BYTES: Final = 32
# One that seals, and one that is coming or going.
KEYS_MAX: Final = 2

_KEY_ID_AT: Final = HEAD_BYTES
_SESSION_AT: Final = _KEY_ID_AT + 1
_COUNTER_AT: Final = _SESSION_AT + 8
_HEAD_BYTES: Final = _COUNTER_AT + 6
_TAG_BYTES: Final = 16
# Of the plain head only the version is sealed; the rest of it is in the sealed one's.
SEAL_BYTES: Final = _HEAD_BYTES - HEAD_BYTES + 1 + _TAG_BYTES

# At 2,000 a second it lasts 4,400 years.
COUNTER_MAX: Final = 2**48 - 1
# Two seconds of datagrams at 2,000 a second, as much as `lvsha.sync.stream` waits for.
WINDOW: Final = 4096
# Sixteen peers that each start four times before the first is forgotten.
SESSIONS_MAX: Final = 64

_NONCE_START: Final = bytes(6)
_WINDOW_MASK: Final = (1 << WINDOW) - 1
_DERIVATION: Final = b"lvsha sync session"
_NAMING: Final = b"lvsha sync key id"


def key_id(key: bytes) -> int:
    """The byte by which datagrams name a key; it tells nothing else of it."""
    return sha256(_NAMING + key).digest()[0]


def sync_id_of_sealed(datagram: bytes) -> int:
    """The sync id of a sealed datagram, by its head alone, which anyone may have written.

    Raises:
        SealError: the datagram is not sealed.
    """
    if not HEAD_BYTES < len(datagram) <= DATAGRAM_BYTES_MAX:
        raise SealError("malformed", "a datagram of an impossible length")
    if datagram[2:HEAD_BYTES] != NOT_A_LENGTH:
        raise SealError("malformed", "a datagram of another protocol, perhaps the kernel's sync")
    version = datagram[0]
    if version != SEALED_VERSION:
        if version == VERSION:
            raise SealError("unsealed", "a datagram that is not sealed")
        raise SealError("malformed", "a datagram of another version of the protocol")
    if len(datagram) <= HEAD_BYTES + SEAL_BYTES:
        raise SealError("malformed", "a sealed datagram that was cut short")
    return datagram[1]


class Seal:
    """The keys of one process, its own session, and what it has heard of others'.

    Args:
        keys: one or two; the first seals, each opens.
        session: 64 random bits of this process, never used by another.
    """

    __slots__ = ("_cipher", "_counter", "_head", "_keys", "_keys_by_id", "_session", "_sessions")

    def __init__(self, keys: Sequence[bytes], session: int) -> None:
        self._session = session.to_bytes(8)
        self._counter = 0
        self._sessions: dict[bytes, _Session] = {}
        self.change_keys(keys)

    @property
    def sessions(self) -> int:
        """How many sessions of others are remembered; at most `SESSIONS_MAX`."""
        return len(self._sessions)

    def change_keys(self, keys: Sequence[bytes]) -> None:
        """Seal with the first of these from now on, and open with each of them only.

        The own numbers go on, and so does what is known of others'.
        """
        assert 1 <= len(keys) <= KEYS_MAX, "one key or two"
        assert len(set(keys)) == len(keys), "one key given twice"
        assert all(len(key) == KEY_BYTES for key in keys), "a key of a wrong length"
        self._keys_by_id: dict[int, list[bytes]] = {}
        for key in keys:
            self._keys_by_id.setdefault(key_id(key), []).append(key)
        self._cipher = _cipher(keys[0], self._session)
        self._head = NOT_A_LENGTH + bytes((key_id(keys[0]),)) + self._session
        for session in self._sessions.values():
            session.ciphers = {
                key: cipher for key, cipher in session.ciphers.items() if key in keys
            }

    def seal(self, datagram: bytes) -> bytes:
        """Make a sealed datagram of a plain one; never the same twice."""
        assert datagram[2:HEAD_BYTES] == NOT_A_LENGTH, "not a datagram of this protocol"
        assert HEAD_BYTES < len(datagram) <= DATAGRAM_BYTES_MAX - SEAL_BYTES
        # Too large a number does not fit into its bytes: a nonce never comes twice, even
        # where assertions are off.
        assert self._counter < COUNTER_MAX, "the numbers of this session are used up"
        counter = (self._counter + 1).to_bytes(6)
        self._counter += 1
        head = bytes((SEALED_VERSION, datagram[1])) + self._head + counter
        return head + self._cipher.encrypt(
            _NONCE_START + counter, datagram[:1] + datagram[HEAD_BYTES:], head
        )

    def open(self, datagram: bytes) -> bytes:
        """The plain datagram within a sealed one, which is accepted once.

        Raises:
            SealError: it is not sealed, not with one of the keys, or not new.
        """
        sync_id_of_sealed(datagram)
        name = datagram[_SESSION_AT:_COUNTER_AT]
        if name == self._session:
            raise SealError("own", "a datagram of this process")
        keys = self._keys_by_id.get(datagram[_KEY_ID_AT])
        if keys is None:
            raise SealError("unknown_key", "a datagram sealed with a key that is not here")
        number = int.from_bytes(datagram[_COUNTER_AT:_HEAD_BYTES])
        session = self._sessions.get(name)
        if session is None:
            session = _Session({}, number)
        elif session.has_seen(number):
            raise SealError("replayed", "a sealed datagram that came before, or is too old")
        for key in keys:
            cipher = session.ciphers.get(key) or _cipher(key, name)
            try:
                plain = cipher.decrypt(
                    _NONCE_START + datagram[_COUNTER_AT:_HEAD_BYTES],
                    datagram[_HEAD_BYTES:],
                    datagram[:_HEAD_BYTES],
                )
            except InvalidTag:
                continue
            session.ciphers[key] = cipher
            session.note(number)
            self._remember(name, session)
            return plain[:1] + datagram[1:HEAD_BYTES] + plain[1:]
        raise SealError("forged", "a datagram whose seal is broken")

    def _remember(self, name: bytes, session: "_Session") -> None:
        """Enter a session behind all others, so that the first is unheard longest."""
        if self._sessions.pop(name, None) is None and len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[name] = session


@dataclass(slots=True)
class _Session:
    """What was heard of one process: bit n of ``seen`` is for the number ``highest`` - n."""

    ciphers: dict[bytes, ChaCha20Poly1305]
    highest: int
    seen: int = 0

    def has_seen(self, number: int) -> bool:
        """Whether a number came before, or is too far back to tell."""
        age = self.highest - number
        return age >= 0 and (age >= WINDOW or bool(self.seen >> age & 1))

    def note(self, number: int) -> None:
        """Note that a number came."""
        age = self.highest - number
        if age >= 0:
            self.seen |= 1 << age
        else:
            # Shifting by more would make a number of as many bits, for nothing.
            self.seen = (self.seen << min(-age, WINDOW) | 1) & _WINDOW_MASK
            self.highest = number


def _cipher(key: bytes, session: bytes) -> ChaCha20Poly1305:
    """The cipher of a key in a session."""
    derivation = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=session, info=_DERIVATION)
    return ChaCha20Poly1305(derivation.derive(key))
