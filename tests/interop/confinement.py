"""What a guest's process needs done between fork and exec.

A user-mode kernel keeps its programs' floating-point registers by ptrace, in a buffer of a
size that was fixed when it was built. A host whose processors have more state than that
(AMX does it) refuses such a buffer when the registers are written back, and the guest dies
with its first program. A system-call filter that refuses the *extended* register set makes
the guest fall back to the old one, which every host takes: `restrict_registers`.

The price: the upper halves of the vector registers are lost whenever the guest handles a
page fault, so that its programs must not use them. `PLAIN_VECTORS`, on the guest's command
line, tells the C library in it to do without.
"""

import ctypes
import signal
import struct
from typing import Final

PLAIN_VECTORS: Final = "GLIBC_TUNABLES=glibc.cpu.hwcaps=" + ",".join(
    f"-{name}"
    for name in (
        "AVX",
        "AVX2",
        "AVX512F",
        "AVX512VL",
        "AVX512BW",
        "AVX512DQ",
        "AVX512CD",
        "AVX512ER",
        "AVX_Fast_Unaligned_Load",
        "AVX2_Usable",
        "ERMS",
    )
)
"""Both the names that glibc used before 2.33 and those since."""

# linux/prctl.h, linux/seccomp.h, linux/audit.h, asm/unistd_64.h, linux/ptrace.h, linux/elf.h
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_SYS_PTRACE = 101
_PTRACE_GETREGSET, _NT_X86_XSTATE = 0x4204, 0x202
_LOAD, _UNLESS_EQUAL, _RETURN = 0x20, 0x15, 0x06
_REFUSE_EINVAL, _ALLOW = 0x00050016, 0x7FFF0000
_SYSTEM_CALL, _ARCHITECTURE, _REQUEST, _ADDRESS = 0, 4, 16, 32


def _filter() -> bytes:
    """A classic BPF program: four equalities, and the refusal if all hold."""
    wanted = (
        (_ARCHITECTURE, _AUDIT_ARCH_X86_64),
        (_SYSTEM_CALL, _SYS_PTRACE),
        (_REQUEST, _PTRACE_GETREGSET),
        (_ADDRESS, _NT_X86_XSTATE),
    )
    program = b""
    for number, (field, value) in enumerate(wanted):
        to_allow = 2 * (len(wanted) - number) - 1
        program += struct.pack("HBBI", _LOAD, 0, 0, field)
        program += struct.pack("HBBI", _UNLESS_EQUAL, 0, to_allow, value)
    program += struct.pack("HBBI", _RETURN, 0, 0, _REFUSE_EINVAL)
    return program + struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)


_PROGRAM = _filter()
_INSTRUCTIONS = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
_HEADER = ctypes.create_string_buffer(
    struct.pack("HxxxxxxP", len(_PROGRAM) // 8, ctypes.addressof(_INSTRUCTIONS))
)
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x4000_0000


def prepare_guest() -> None:
    """Between fork and exec: end with the parent, and see only the old registers."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _HEADER, 0, 0)


def enter_network_namespace() -> None:
    """Move this process to a new network namespace, which ends with it and its children."""
    if _LIBC.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
