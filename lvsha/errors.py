"""Every exception that lvsha raises on purpose, and nothing else.

Each class names who is at fault, because that decides the treatment: a peer's
packet is counted and dropped, an operator's mistake stops the start with exit
code 2, a machine that lacks something is one clear sentence. A fault of our own
is an ``AssertionError`` and has no class here.
"""

from typing import Final, Literal


class LvshaError(Exception):
    """The base of all of them; its text is one sentence for a person."""


class WireError(LvshaError):
    """Bytes from the network that are not what they claim to be."""


AdvertisementFault = Literal[
    "length", "version", "kind", "id", "count", "interval", "checksum", "authentication"
]
"""What can be wrong with a VRRP message, by the field that shows it."""


class AdvertisementError(WireError):
    """A VRRP message that must be discarded.

    Attributes:
        fault: what to count it as.
    """

    def __init__(self, fault: AdvertisementFault, text: str) -> None:
        super().__init__(text)
        self.fault: Final = fault


class SyncError(LvshaError):
    """A sync datagram that cannot be understood or must not be believed."""


SealFault = Literal["malformed", "unsealed", "own", "replayed", "unknown_key", "forged"]
"""What can be wrong with a seal; `SealError` says what each of these means."""


class SealError(SyncError):
    """A sync datagram that is refused for its seal.

    Attributes:
        kind: what to count it as. ``malformed``: no datagram of this protocol.
            ``unsealed``: one that nobody sealed. ``own``: this process has sealed it.
            ``replayed``: it came before, or is too old to tell. ``unknown_key``: sealed
            with a key that is not here. ``forged``: sealed with none, or changed since.
    """

    def __init__(self, kind: SealFault, text: str) -> None:
        super().__init__(text)
        self.kind: Final = kind


class ConfigError(LvshaError):
    """The operator's configuration is wrong; names the file, the key and what was expected."""


class AdministrationError(LvshaError):
    """A command that the director refuses, as the kernel refuses it.

    Attributes:
        code: the kernel's error number (``errno``) for it.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class HandoverError(LvshaError):
    """The addresses stay where they are; says why."""


class HostError(LvshaError):
    """The machine lacks something: a capability, an interface, a program, a kernel feature."""
