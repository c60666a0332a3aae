"""Run a program in a private world: own network, mounts and processes.

util-linux's ``unshare`` makes the namespaces: directly where this process is allowed
to, otherwise within a user namespace of its own. What is missing on a machine where
neither works is said in one sentence.

Everything inside ends with the first process inside (a process namespace ends with
its process 1), and that one watches the lifeline: a pipe whose other end this process
holds and never writes to. So nothing is left behind, however this process ends.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lvsha.errors import HostError

PROGRAMS: Final = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "nft": "nftables",
}
"""What a drill runs, and the Debian package that holds it."""

PROBE_TIME_MAX: Final = 20.0

_NAMESPACES: Final = (
    "--net",
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
_AS_USER: Final = ("--user", "--map-root-user")

_PROBES: Final = (
    ("mounting a file system in it", "mount -t tmpfs lvsha-drill /run && mkdir /run/netns"),
    ("a network namespace in it", "ip netns add probe"),
    ("a bridge in it", "ip link add probe type bridge"),
    ("a veth pair in it", "ip link add probe0 type veth peer name probe1 netns probe"),
    (
        "an nftables netdev table in it",
        "nsenter --net=/run/netns/probe nft add table netdev lvsha-probe",
    ),
)
_MARK: Final = "drill-cannot:"


def extend_search_path() -> None:
    """Look for programs where distributions keep those of the administrator, too."""
    known = os.environ.get("PATH", os.defpath).split(os.pathsep)
    missing = [place for place in ("/usr/sbin", "/sbin") if place not in known]
    os.environ["PATH"] = os.pathsep.join([*known, *missing])


def seclusion() -> list[str]:
    """The beginning of a command line that runs the rest of it in a private world.

    Raises:
        HostError: no private world can be made on this machine; says why.
    """
    extend_search_path()
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise HostError(
                f"the drill needs the program {program!r} (Debian package {package}), "
                "which was not found"
            )
    complaints = []
    for extra in [(), _AS_USER] if os.geteuid() == 0 else [_AS_USER]:
        command = ["unshare", *extra, *_NAMESPACES]
        complaint = _try(command)
        if complaint is None:
            return command
        complaints.append(complaint)
    raise HostError(explain(complaints[-1], _restrictions()))


def run_secluded(
    prefix: Sequence[str], command: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Run a command in a private world until it ends; its exit code.

    The command gets one more argument: the number of the lifeline's descriptor.
    """
    lifeline, held = os.pipe()
    try:
        with subprocess.Popen(
            [*prefix, "--", *command, str(lifeline)], pass_fds=(lifeline,), env=environment
        ) as process:
            os.close(lifeline)
            lifeline = -1
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    # The terminal told the drill, too; its own end is the better one.
                    continue
    finally:
        os.close(held)
        if lifeline >= 0:
            os.close(lifeline)


def explain(complaint: str, restrictions: Sequence[str]) -> str:
    """One sentence on why no private world can be made."""
    because = f" because {' and '.join(restrictions)}" if restrictions else ""
    advice = "" if os.geteuid() == 0 else "; run it as root, or allow user namespaces"
    return f"the drill cannot make a private network here{because}: {complaint}{advice}"


def _try(command: Sequence[str]) -> str | None:
    """Make a private world for a moment; None if all that a drill needs worked in it."""
    script = "\n".join(f"{step} || {{ echo '{_MARK}{what}'; exit 9; }}" for what, step in _PROBES)
    try:
        done = subprocess.run(
            [*command, "--", "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=PROBE_TIME_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"unshare did not end in {PROBE_TIME_MAX:.0f} s"
    if done.returncode == 0:
        return None
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    failed = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if _MARK in line]
    return f"{failed[0]} failed ({said})" if failed else said


def _restrictions() -> list[str]:
    """The known switches by which distributions forbid user namespaces."""
    switches = (
        ("user/max_user_namespaces", "0", "user namespaces are disabled"),
        ("kernel/unprivileged_userns_clone", "0", "unprivileged user namespaces are disabled"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "AppArmor restricts unprivileged user namespaces",
        ),
    )
    found = []
    for name, forbidding, meaning in switches:
        try:
            value = Path("/proc/sys", name).read_text(encoding="ascii").strip()
        except OSError:
            continue  # this kernel has no such switch
        if value == forbidding:
            found.append(f"{meaning} ({name.replace('/', '.')} = {value})")
    return found
