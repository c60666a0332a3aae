"""lvsha's director with the face that both sides of the comparison have.

`Side` is that face. `LvshaSide` stands in the network of `tests.laboratory`; its time stands
still, and so a run must be shorter than the shortest time after which the kernel forgets.
"""

from typing import Protocol

from tests.laboratory import Left
from tests.vectors.kernel_director import KernelDirector, mark_rule
from tests.vectors.recordings import without_time_left

CommandResult = tuple[int, str, str]


class Side(Protocol):
    """A director under comparison."""

    def ipvsadm(self, command: str) -> CommandResult:
        """Carry out an ipvsadm command: exit status, output, errors."""

    def sysctl(self, name: str, value: str) -> None:
        """Change a setting of IPVS."""

    def mark(self, destination: str, mark: int) -> None:
        """Give a firewall mark to what clients send to a prefix."""

    def send(self, side: str, packet: bytes) -> list[Left]:
        """Let a packet come in; returns all that left because of it."""

    def connections(self) -> list[str]:
        """The connections as ``ipvsadm -Lnc`` prints them, without the time left, sorted."""

    def counts(self) -> list[str]:
        """Each real server of ``ipvsadm -Ln``: service, server, method and counts, sorted."""

    def tunnels(self) -> list[tuple[str, str]]:
        """The address and the kind of tunnel of each server that has one."""


class LvshaSide:
    """lvsha's director, new for each seed."""

    def __init__(self, vips: tuple[str, ...]) -> None:
        self._kernel = KernelDirector({"vips": list(vips), "config": []})

    def ipvsadm(self, command: str) -> CommandResult:
        """Carry out an ipvsadm command."""
        result = self._kernel.ipvsadm(command)
        self._kernel.sleep(0.0)  # what the kernel does with its next tick
        return result.status, result.out, result.err

    def sysctl(self, name: str, value: str) -> None:
        """Change a setting."""
        self._kernel.set(**{name: value})

    def mark(self, destination: str, mark: int) -> None:
        """Give a firewall mark to what clients send to a prefix."""
        marks = self._kernel.director.marks
        marks.set([*marks.rules, mark_rule(destination, mark)])

    def send(self, side: str, packet: bytes) -> list[Left]:
        """Let a packet come in; returns all that left because of it."""
        return self._kernel.send(side, packet)

    def connections(self) -> list[str]:
        """The connections as ``ipvsadm -Lnc`` prints them, without the time left, sorted."""
        return without_time_left(self._kernel.lines())

    def counts(self) -> list[str]:
        """Each real server: service, server, method and counts, sorted."""
        return server_lines(self._kernel.ipvsadm("-Ln").out)

    def tunnels(self) -> list[tuple[str, str]]:
        """The address and the kind of tunnel of each server that has one."""
        return tunnel_ends(self._kernel.ipvsadm("-Ln --tun-info").out)


def tunnel_ends(listing: str) -> list[tuple[str, str]]:
    """The address and the kind of tunnel of each server in ``ipvsadm -Ln --tun-info``."""
    rows = (line.split() for line in listing.splitlines()[3:] if line.startswith("  ->"))
    return [(row[1].rpartition(":")[0], row[3]) for row in rows if row[2] == "Tunnel"]


def server_lines(listing: str) -> list[str]:
    """Each real server of ``ipvsadm -Ln``: service, server, method, weight, counts; sorted."""
    lines: list[str] = []
    service = ""
    for line in listing.splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            lines.append(f"{service} -> {' '.join(words[1:])}")
        else:
            service = " ".join(words[:2])
    return sorted(lines)
