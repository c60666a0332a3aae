"""``python -m tests.interop``: compare lvsha with a real kernel's IPVS, seed by seed.

It boots a guest (`tests.interop.kernel`), runs the scenario of each seed on it and on lvsha,
and tells the first difference of each seed that has one. Where no guest can be had it says
why and ends well.
"""

import argparse
import sys
import time
from collections import Counter, deque

from tests.interop.compare import DisagreementError, TooSlowError, compare_seed, new_lvsha
from tests.interop.confinement import enter_network_namespace
from tests.interop.differences import DIFFERENCES
from tests.interop.draw import EVERYTHING, VIPS
from tests.interop.kernel import KernelSide, missing


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument(
        "--kernel-only",
        action="store_true",
        help="draw all that the kernel can do, and run it on the kernel alone",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every step")
    return parser.parse_args(words)


ROUNDS_MAX = 3


def main(words: list[str]) -> int:
    """Run the seeds; returns the exit status."""
    arguments = parse_arguments(words)
    reason = missing()
    if reason is not None:
        print(f"interop skipped: {reason}")
        return 0
    seeds = [arguments.seed]
    if arguments.seed is None:
        seeds = list(range(arguments.first, arguments.first + arguments.seeds))
    counts: Counter[str] = Counter()
    differences: Counter[str] = Counter()
    failed: list[int] = []
    enter_network_namespace()
    started = time.monotonic()
    with KernelSide((*VIPS[4], *VIPS[6])) as kernel:
        print(f"Linux {kernel.release} and lvsha, {len(seeds)} seeds from {seeds[0]}")
        # A seed for which the machine is too slow has its turn again when all others are done.
        waiting = deque((seed, ROUNDS_MAX) for seed in seeds)
        while waiting:
            seed, rounds = waiting.popleft()
            try:
                tally = compare_seed(
                    seed,
                    EVERYTHING,
                    kernel,
                    None if arguments.kernel_only else new_lvsha,
                    time.monotonic,
                    print if arguments.verbose else None,
                )
            except (DisagreementError, TooSlowError) as error:
                if isinstance(error, TooSlowError) and rounds > 1:
                    waiting.append((seed, rounds - 1))
                    continue
                failed.append(seed)
                print(f"{error}\n  again: python -m tests.interop --seed {seed} -v\n")
                continue
            counts.update(tally.counts)
            differences.update(tally.differences)
    took = time.monotonic() - started
    print(f"{len(seeds) - len(failed)} of {len(seeds)} seeds agree, in {took:.0f} s")
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    for difference in DIFFERENCES:
        if differences[difference.name]:
            print(f"{differences[difference.name]} times {difference.name}: {difference.reason}")
    if failed:
        print(f"seeds that differ: {' '.join(map(str, failed))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
