"""The options of ipvsadm, and how a command line is taken apart into them.

The rules of the words are those of the library popt, which ipvsadm uses: long options in
full, with ``=VALUE`` or the value as the next word; short ones in clusters (``-Lnc``,
``-mw5``); a value is taken even if it begins with a dash; an optional one only if it does
not. They are not those of argparse, which shortens long options, takes ``-5`` for a number,
reorders, and words its errors itself; and what may stand together, in which order mistakes
are found, and the exit status of each are part of what scripts rely on.

Which option may stand with which command is a table below. What the values mean is in
`lvsha.ipvsadm.arguments`.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from lvsha.errors import LvshaError

STATUS_USAGE: Final = 2
"""Exit status of a rule that is violated."""
STATUS_UNUSABLE: Final = 255
"""Exit status of a command line that cannot be taken apart."""

TRY_HELP: Final = "Try `ipvsadm -h' or 'ipvsadm --help' for more information."


class UsageError(LvshaError):
    """A command line that breaks a rule; its text is what is printed.

    Attributes:
        status: the exit status.
        ends_restore: whether a restore stops at it; it goes on after a line that only
            cannot be taken apart.
    """

    def __init__(self, text: str, status: int = STATUS_USAGE, *, ends_restore: bool = True) -> None:
        super().__init__(text)
        self.status = status
        self.ends_restore = ends_restore


class Takes(Enum):
    """Whether an option has a value."""

    NOTHING = "nothing"
    VALUE = "a value"
    PERHAPS = "perhaps a value"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        subject: what messages call it; options of one subject exclude each other.
        long: its name.
        short: its letters; most have one or none.
        takes: whether a value follows.
        command: whether it is a command.
        repeatable: whether it may be given twice.
    """

    subject: str
    long: str
    short: str = ""
    takes: Takes = Takes.NOTHING
    command: bool = False
    repeatable: bool = False


def _command(subject: str, long: str, short: str = "", takes: Takes = Takes.NOTHING) -> Option:
    return Option(subject, long, short, takes, command=True)


COMMANDS: Final = (
    _command("add-service", "add-service", "A"),
    _command("edit-service", "edit-service", "E"),
    _command("delete-service", "delete-service", "D"),
    _command("flush", "clear", "C"),
    _command("restore", "restore", "R"),
    _command("save", "save", "S"),
    _command("add-server", "add-server", "a"),
    _command("edit-server", "edit-server", "e"),
    _command("delete-server", "delete-server", "d"),
    _command("list", "list", "Ll"),
    _command("zero", "zero", "Z"),
    _command("set", "set"),
    _command("start-daemon", "start-daemon", takes=Takes.VALUE),
    _command("stop-daemon", "stop-daemon", takes=Takes.VALUE),
    _command("help", "help", "h"),
    _command("version", "version", "v"),
)

# In the order in which a violated rule is looked for.
OPTIONS: Final = (
    Option("numeric", "numeric", "n"),
    Option("connection", "connection", "c"),
    Option("service-address", "tcp-service", "t", Takes.VALUE),
    Option("service-address", "udp-service", "u", Takes.VALUE),
    Option("service-address", "sctp-service", "", Takes.VALUE),
    Option("service-address", "fwmark-service", "f", Takes.VALUE),
    Option("ipv6", "ipv6", "6", repeatable=True),
    Option("scheduler", "scheduler", "s", Takes.VALUE),
    Option("persistent", "persistent", "p", Takes.PERHAPS),
    Option("netmask", "netmask", "M", Takes.VALUE),
    Option("real-server", "real-server", "r", Takes.VALUE),
    Option("forwarding-method", "gatewaying", "g"),
    Option("forwarding-method", "ipip", "i"),
    Option("forwarding-method", "masquerading", "m"),
    Option("weight", "weight", "w", Takes.VALUE),
    Option("u-threshold", "u-threshold", "x", Takes.VALUE),
    Option("l-threshold", "l-threshold", "y", Takes.VALUE),
    Option("mcast-interface", "mcast-interface", "", Takes.VALUE),
    Option("timeout", "timeout"),
    Option("daemon", "daemon"),
    Option("stats", "stats"),
    Option("rate", "rate"),
    Option("thresholds", "thresholds"),
    Option("persistent-conn", "persistent-conn"),
    Option("nosort", "nosort"),
    Option("sort", "sort", repeatable=True),
    Option("syncid", "syncid", "", Takes.VALUE),
    Option("exact", "exact", "X"),
    Option("ops", "ops", "o"),
    Option("pe", "pe", "", Takes.VALUE),
    Option("sched-flags", "sched-flags", "b", Takes.VALUE),
    Option("mcast-group", "mcast-group", "", Takes.VALUE),
    Option("mcast-port", "mcast-port", "", Takes.VALUE),
    Option("mcast-ttl", "mcast-ttl", "", Takes.VALUE),
    Option("sync-maxlen", "sync-maxlen", "", Takes.VALUE),
    Option("tun-info", "tun-info"),
    Option("tun-type", "tun-type", "", Takes.VALUE),
    Option("tun-port", "tun-port", "", Takes.VALUE),
    Option("tun-nocsum", "tun-nocsum"),
    Option("tun-csum", "tun-csum"),
    Option("tun-remcsum", "tun-remcsum"),
)

_SERVICE_OPTIONS: Final = frozenset(
    {"scheduler", "persistent", "netmask", "ops", "pe", "sched-flags"}
)
_TUNNEL_OPTIONS: Final = frozenset(
    {"tun-type", "tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"}
)
_SERVER_OPTIONS: Final = _TUNNEL_OPTIONS | {
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
}
_LIST_OPTIONS: Final = frozenset(
    {
        "numeric",
        "connection",
        "service-address",
        "timeout",
        "daemon",
        "stats",
        "rate",
        "thresholds",
        "persistent-conn",
        "nosort",
        "syncid",
        "exact",
        "tun-info",
    }
)
_DAEMON_OPTIONS: Final = frozenset(
    {"mcast-interface", "syncid", "sync-maxlen", "mcast-group", "mcast-port", "mcast-ttl"}
)
_ALWAYS_LEGAL: Final = frozenset({"sort", "ipv6"})

_SERVICE: Final = frozenset({"service-address"})
_SERVER: Final = frozenset({"service-address", "real-server"})
_NOTHING: Final[frozenset[str]] = frozenset()

REQUIRED: Final[Mapping[str, frozenset[str]]] = {
    "add-service": _SERVICE,
    "edit-service": _SERVICE,
    "delete-service": _SERVICE,
    "add-server": _SERVER,
    "edit-server": _SERVER,
    "delete-server": _SERVER,
}
LEGAL: Final[Mapping[str, frozenset[str]]] = {
    "add-service": _SERVICE | _SERVICE_OPTIONS,
    "edit-service": _SERVICE | _SERVICE_OPTIONS,
    "delete-service": _SERVICE,
    "flush": _NOTHING,
    "restore": _NOTHING,
    "save": frozenset({"numeric"}),
    "add-server": _SERVER | _SERVER_OPTIONS,
    "edit-server": _SERVER | _SERVER_OPTIONS,
    "delete-server": _SERVER,
    "list": _LIST_OPTIONS,
    "zero": _SERVICE,
    "set": _NOTHING,
    "start-daemon": _DAEMON_OPTIONS,
    "stop-daemon": frozenset({"syncid"}),
}

_BY_LONG: Final = {option.long: option for option in (*COMMANDS, *OPTIONS)}
_BY_SHORT: Final = {letter: option for option in (*COMMANDS, *OPTIONS) for letter in option.short}


@dataclass(frozen=True, slots=True)
class Given:
    """One option of a command line.

    Attributes:
        value: None if it has none.
        word: the word in which it stands.
    """

    option: Option
    value: str | None
    word: str


@dataclass(slots=True)
class TakenApart:
    """A command line by its options.

    Attributes:
        given: in order.
        positional: the words that are neither options nor values.
        mistake: what ended it early; raised only where the words before it are in order.
    """

    given: list[Given] = field(default_factory=list)
    positional: list[str] = field(default_factory=list)
    mistake: UsageError | None = None


def take_apart(words: Sequence[str]) -> TakenApart:
    """Find the options of a command line."""
    result = TakenApart()
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word == "--":
            result.positional += rest
            break
        if len(word) < len("-x") or not word.startswith("-"):
            result.positional.append(word)
            continue
        try:
            for given in _long(word, rest) if word.startswith("--") else _cluster(word, rest):
                result.given.append(given)
        except UsageError as error:
            result.mistake = error
            break
    return result


def _long(word: str, rest: deque[str]) -> Iterator[Given]:
    name, equals, value = word[2:].partition("=")
    option = _BY_LONG.get(name)
    if option is None:
        raise _unusable(word, "unknown option")
    yield Given(option, _value(option, value if equals else None, word, rest), word)


def _cluster(word: str, rest: deque[str]) -> Iterator[Given]:
    """The short options of one word; a value ends it."""
    for index, letter in enumerate(word[1:], start=2):
        option = _BY_SHORT.get(letter)
        if option is None:
            raise _unusable(word, "unknown option")
        attached = word[index:]
        if option.takes is not Takes.NOTHING:
            value = attached.removeprefix("=") if attached else None
            yield Given(option, _value(option, value, word, rest), word)
            return
        if attached.startswith("="):
            _value(option, attached, word, rest)
        yield Given(option, None, word)


def _value(option: Option, attached: str | None, word: str, rest: deque[str]) -> str | None:
    """The value of an option, from its own word or from the next."""
    if option.takes is Takes.NOTHING:
        if attached is not None:
            raise _unusable(word, "option does not take an argument")
        return None
    if attached is not None:
        return attached
    if option.takes is Takes.PERHAPS and (not rest or rest[0].startswith("-")):
        return None
    if not rest:
        raise _unusable(word, "missing argument")
    return rest.popleft()


def _unusable(word: str, fault: str) -> UsageError:
    return UsageError(f"{word}: {fault}", STATUS_UNUSABLE, ends_restore=False)


def check_legal(command: str, subjects: Collection[str]) -> None:
    """Check which options a command needs and may have.

    Args:
        command: the subject of the command.
        subjects: those of the options that were given.

    Raises:
        UsageError: one is missing or illegal.
    """
    required = REQUIRED.get(command, _NOTHING)
    legal = LEGAL[command] | _ALWAYS_LEGAL
    for option in OPTIONS:
        subject = option.subject
        if subject in required and subject not in subjects:
            raise UsageError(
                f"You need to supply the '{subject}' option for the '{command}' command"
            )
        if subject in subjects and subject not in legal:
            raise UsageError(f"Illegal '{subject}' option with the '{command}' command")
