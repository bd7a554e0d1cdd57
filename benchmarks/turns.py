"""Throughput of competitors that take turns, so that a machine's moods hit all of them alike."""

import dataclasses
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

# After its last parallel region a thread pool spins for a while; the other side must not pay.
_REST_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Side:
    """One competitor. run() does one unit of work and returns when it is done.

    images: images per unit, or whatever else its throughput is counted in. settle() returns when
    nothing that a turn has started still runs.
    """

    name: str
    run: Callable[[], object]
    images: int
    settle: Callable[[], object] = lambda: None


def seconds_of(run: Callable[[], object]) -> float:
    """Returns the wall time of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def take_turns(sides: Sequence[Side], turns: int, seconds: float) -> dict[str, list[float]]:
    """Measures A, B, A, B, ... after a warm-up, printing every turn.

    A turn repeats its side's unit of work for about `seconds`, at least once. Returns images per
    second of each turn, by the side's name.
    """
    repeats = {}
    for side in sides:
        side.run()
        repeats[side.name] = max(1, math.ceil(seconds / seconds_of(side.run)))
        side.settle()
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(turns):
        for side in sides:
            time.sleep(_REST_SECONDS)
            count = repeats[side.name]
            taken = sum(seconds_of(side.run) for _ in range(count))
            rates[side.name].append(count * side.images / taken)
            side.settle()
        shown = ", ".join(f"{side.name} {rates[side.name][-1]:.3f}" for side in sides)
        print(f"  turn {turn + 1}: {shown} images/s", flush=True)
    return rates


def compare(rates: dict[str, list[float]], first: str, second: str) -> dict[str, float]:
    """Prints and returns medians and ratios first / second, overall and turn by turn."""
    medians = {name: statistics.median(rates[name]) for name in (first, second)}
    pairs = sorted(a / b for a, b in zip(rates[first], rates[second], strict=True))
    result = {
        f"{first}_median": medians[first],
        f"{second}_median": medians[second],
        "ratio_of_medians": medians[first] / medians[second],
        "pair_ratio_min": pairs[0],
        "pair_ratio_median": statistics.median(pairs),
        "pair_ratio_max": pairs[-1],
    }
    print(
        f"  medians: {first} {medians[first]:.3f}, {second} {medians[second]:.3f} images/s; "
        f"{first} / {second} = {result['ratio_of_medians']:.3f} "
        f"(pairs {pairs[0]:.3f} .. {result['pair_ratio_median']:.3f} .. {pairs[-1]:.3f})"
    )
    return result


def cores() -> int:
    """Returns the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def use_cores(count: int) -> None:
    """Restricts the process to `count` cores. Call before either framework starts its threads.

    Raises ValueError where the machine does not have them or cannot restrict a process.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"threads = {count}: this system cannot restrict a process to cores")
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(available):
        raise ValueError(f"threads = {count}: must be 1 to {len(available)}, the cores available")
    os.sched_setaffinity(0, available[:count])


def load() -> str:
    """Returns the machine's load averages, which tell whether it was idle."""
    return "load averages " + ", ".join(f"{value:.1f}" for value in os.getloadavg())


def finish(results: dict[str, Any], path: pathlib.Path | None) -> dict[str, Any]:
    """Prints the load before and after, writes the file of --json, and returns the results."""
    results["load_after"] = load()
    print(f"before: {results['load_before']}; after: {results['load_after']}")
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")
    return results
