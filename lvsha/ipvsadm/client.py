"""The command ``ipvsadm``: the director that runs in this network namespace does the work.

Words are understood and names are looked up here, before anything is asked. A restore is
sent in batches of lines and a long listing comes in pages, so that the director never stops
forwarding for either.

`main` is what a program called ``ipvsadm`` runs.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from lvsha import control
from lvsha.errors import HostError, WireError
from lvsha.ipvsadm.arguments import parse
from lvsha.ipvsadm.commands import STATUS_REFUSED, restore_words
from lvsha.ipvsadm.exchange import LINES_MAX, Answer, Request
from lvsha.ipvsadm.manual import HELP, VERSION
from lvsha.ipvsadm.names import KnownNames, Names, RememberedNames
from lvsha.ipvsadm.options import UsageError
from lvsha.ipvsadm.requests import (
    ListConnections,
    ListServices,
    Restore,
    Save,
    ShowHelp,
    ShowVersion,
)
from lvsha.ipvsadm.resolver import SystemNames
from lvsha.model import parse_address

Ask = Callable[[Request], Answer]


def ask_director(request: Request) -> Answer:
    """Ask the director of this network namespace.

    Raises:
        HostError: none is running, or it does not answer.
        WireError: its answer makes no sense.
    """
    return Answer.parse(control.ask("ipvsadm", request.model_dump(mode="json")))


class Ipvsadm:
    """One call of the command.

    Args:
        ask: sends a request to the director.
        names: where names are looked up.
        stdin, out, err: the standard streams.
    """

    def __init__(self, ask: Ask, names: Names, stdin: TextIO, out: TextIO, err: TextIO) -> None:
        self._ask = ask
        self._names = RememberedNames(names)
        self._stdin = stdin
        self._out = out
        self._err = err

    def run(self, words: Sequence[str]) -> int:
        """Carry out a command line; returns the exit status.

        Raises:
            HostError: no director answers.
            WireError: its answer makes no sense.
        """
        try:
            command = parse(words, self._names)
        except UsageError as error:
            self._err.write(f"{error}\n")
            return error.status
        match command:
            case ShowHelp():
                self._print(Answer(status=0, out=HELP))
                return 0
            case ShowVersion():
                self._print(Answer(status=0, out=VERSION))
                return 0
            case Restore():
                return self._restore(words)
        named = isinstance(command, ListServices | ListConnections | Save) and not command.numeric
        following: int | None = 0
        status = 0
        while following is not None:
            answer = self._page(words, following, named=named)
            self._print(answer)
            status, following = answer.status, answer.following
        return status

    def _page(self, words: Sequence[str], following: int, *, named: bool) -> Answer:
        """Ask for a page; where it wants names, look them up and ask again."""
        answer = self._send(words, "", following)
        if named and (answer.asked_hosts or answer.asked_services):
            names = self._known()
            for text in answer.asked_hosts:
                address = parse_address(text)
                names.hosts[address] = self._names.host(address)
            for port, protocol in answer.asked_services:
                names.services[port, protocol] = self._names.service(port, protocol)
            answer = self._ask(Request.make(tuple(words), "", following, names))
        return answer

    def _known(self) -> KnownNames:
        """The names that words stand for; not those that a page printed."""
        return KnownNames(self._names.known.addresses.copy(), self._names.known.ports.copy())

    def _restore(self, words: Sequence[str]) -> int:
        status = 0
        for batch in self._batches():
            answer = self._send(words, batch, 0)
            self._print(answer)
            status = answer.status
            if answer.ends_restore:
                break
        return status

    def _batches(self) -> Iterator[str]:
        """The lines that say something, some at a time, when their names are known."""
        lines: list[str] = []
        for line in self._stdin:
            words = restore_words(line)
            if not words:
                continue
            lines.append(line.rstrip("\n"))
            ends = False
            try:
                parse(words, self._names)
            except UsageError as error:
                # The director will say so too, after it has carried out those before.
                ends = error.ends_restore
            if ends or len(lines) == LINES_MAX:
                yield "\n".join(lines)
                lines.clear()
        if lines:
            yield "\n".join(lines)

    def _send(self, words: Sequence[str], stdin: str, following: int) -> Answer:
        return self._ask(Request.make(tuple(words), stdin, following, self._known()))

    def _print(self, answer: Answer) -> None:
        self._out.write(answer.out)
        self._out.flush()
        self._err.write(answer.err)


def run(words: Sequence[str]) -> int:
    """Carry out a command line on the director of this namespace; returns the exit status."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="backslashreplace")
    command = Ipvsadm(ask_director, SystemNames(), sys.stdin, sys.stdout, sys.stderr)
    try:
        return command.run([_printable(word) for word in words])
    except BrokenPipeError:
        # Whoever read the listing has seen enough; the interpreter will flush into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_REFUSED
    except (HostError, WireError) as error:
        sys.stderr.write(f"ipvsadm: {error}\n")
        return STATUS_REFUSED


def _printable(word: str) -> str:
    """A word with its bytes that are no text written out."""
    return word.encode(errors="surrogateescape").decode(errors="backslashreplace")


def main() -> None:
    """The entry point."""
    sys.exit(run(sys.argv[1:]))
