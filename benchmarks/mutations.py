"""Damaged and hostile inputs against the data sources: none may end a run, or hang it.

  python -m benchmarks.mutations --inputs=2000 --seed=0

Each input is a folder of data in which one thing is mutated: a tar (bytes flipped, cut out, cut
off, repeated; sizes and types of headers forged), a picture, a JSON member, a caption, a row of
metadata.jsonl, the file of an index. Beside it stands sound data. Opened and read to the end as
training does, every sample must come or be a DamagedSample, and the sound ones must come whole; of
a mutated tar also those that lie before the first mutated byte. An input counts as

  handled: so it was;
  escaped: something else was raised, or a sound sample was lost or changed;
  hung: it took more than --seconds of processor time, or ten times as long by the clock.

Exit code 1 unless all are handled. What is printed of an input can be had again: --only=NUMBER.
"""

import argparse
import collections
import math
import multiprocessing
import pathlib
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection

from absl import logging

from contextdiff_jax.system.printable import printable
from tests.data.judged_data import judge
from tests.data.mutated_data import Input, make_input


def run_one(seed: int, number: int, seconds: float) -> tuple[str, str]:
    """Returns the kind of an input, and "handled" or what happened, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mutation") as folder:
        kind, found = make_input(pathlib.Path(folder), seed, number)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_judge_in_child, args=(found, seconds, sender)
        )
        child.start()
        sender.close()
        child.join(10 * seconds)
        if child.exitcode is None:
            child.kill()
            child.join()
            return kind, "hung"
        if child.exitcode == -signal.SIGXCPU:
            return kind, "hung"
        return kind, receiver.recv() if receiver.poll() else f"escaped: exit {child.exitcode}"


def _judge_in_child(found: Input, seconds: float, sender: Connection) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    try:
        judge(found)
    except Exception as error:
        logging.debug("escaped", exc_info=True)
        sender.send(f"escaped: {type(error).__name__}: {printable(error, 100)}")
    else:
        sender.send("handled")


def main(argv: Sequence[str] | None = None) -> collections.Counter:
    """Runs the inputs, prints the count, and returns it by (kind, what happened)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time for an input")
    parser.add_argument("--only", type=int, help="the number of one input")
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR if args.only is None else logging.DEBUG)
    numbers = range(args.inputs) if args.only is None else [args.only]
    counts: collections.Counter = collections.Counter()
    for number in numbers:
        kind, result = run_one(args.seed, number, args.seconds)
        counts[kind, result.partition(":")[0]] += 1
        if result != "handled":
            print(f"input {number} ({kind}): {result}", flush=True)
    for kind in sorted({kind for kind, _ in counts}):
        print(f"  {kind}: " + ", ".join(f"{n} {r}" for (k, r), n in counts.items() if k == kind))
    totals = {r: sum(n for (_, s), n in counts.items() if s == r) for r in ("handled", "escaped")}
    totals["hung"] = sum(counts.values()) - sum(totals.values())
    print(f"{len(numbers)} inputs: " + ", ".join(f"{n} {result}" for result, n in totals.items()))
    return counts


if __name__ == "__main__":
    sys.exit(any(result != "handled" for _, result in main()))
