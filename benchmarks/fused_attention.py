"""The platform's fused attention kernel against plain attention: equal, and how much faster.

  python -m benchmarks.fused_attention                  # on a GPU or TPU, a minute or two
  python -m benchmarks.fused_attention --emulate=flash  # toy sizes on a CPU, no speeds

Both attend in bfloat16, forward and backward; their errors are against plain attention in float32
on the same numbers. The kernel passes where its error is at most three times that of plain
bfloat16, and rows without keys give zeros. Ends with 1 where it does not pass.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import Side, compare, take_turns
from contextdiff_jax.networks import dot_product_attention as dpa

KERNELS = {"gpu": "cudnn", "tpu": "flash"}
PLAIN = functools.partial(dpa.attend, implementation="xla")
EMULATED: dict[str, Callable] = {
    "cudnn": functools.partial(dpa.cudnn_attention, backend="xla"),
    "flash": functools.partial(dpa.flash_attention, interpret=True),
}
NAMES = ("output", "gradient of queries", "of keys", "of values")
ALLOWED = 3.0


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one attention; masked: keys have gaps, and the last row has none at all."""

    queries: int
    keys: int
    masked: bool
    batch: int = 16
    heads: int = 8
    width: int = 64

    def __str__(self) -> str:
        masked = ", masked" if self.masked else ""
        return f"{self.queries} queries, {self.keys} keys{masked}"


# Of the paper's base at 32 x 32 and 16 x 16, with and without its text; and lengths that are odd.
CASES = (
    Case(1024, 1024, False),
    Case(1024, 1152, True),
    Case(256, 384, True),
    Case(255, 333, True),
    Case(255, 255, False),
)
TOY = (Case(20, 33, True, 2, 2, 8), Case(20, 20, False, 2, 2, 8))


def inputs(case: Case) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Returns query, key, value in float32, whose values bfloat16 has too, and the mask."""
    rng = np.random.default_rng(0)
    tokens = (
        jnp.asarray(rng.normal(size=(case.batch, length, case.heads, case.width)), jnp.bfloat16)
        for length in (case.queries, case.keys, case.keys)
    )
    mask = rng.random((case.batch, case.keys)) < 0.6
    mask[0], mask[-1] = True, False
    query, key, value = (x.astype(jnp.float32) for x in tokens)
    return query, key, value, jnp.asarray(mask) if case.masked else None


def with_gradients(attend: Callable, mask: jax.Array | None, dtype: Any) -> Callable:
    """Returns f(query, key, value) -> output and three gradients, jitted, computed in dtype."""

    @jax.jit
    def run(*tokens: jax.Array) -> tuple[jax.Array, ...]:
        tokens = tuple(x.astype(dtype) for x in tokens)
        output, pull = jax.vjp(lambda *inner: attend(*inner, mask), *tokens)
        direction = jnp.cos(jnp.arange(output.size)).reshape(output.shape).astype(dtype)
        return output, *pull(direction)

    return run


def check(case: Case, attend: Callable) -> dict[str, Any]:
    """Prints and returns the errors of both, and whether the kernel passes."""
    *tokens, mask = inputs(case)
    exact = with_gradients(PLAIN, mask, jnp.float32)(*tokens)
    rounded, fused = (with_gradients(side, mask, jnp.bfloat16)(*tokens) for side in (PLAIN, attend))
    errors = {
        name: [_error(side, wanted) for side in (got, other)]
        for name, got, other, wanted in zip(NAMES, fused, rounded, exact, strict=True)
    }
    silent = mask is None or not np.any(np.asarray(fused[0][-1], np.float32))
    passed = silent and all(ours <= ALLOWED * theirs for ours, theirs in errors.values())
    shown = ", ".join(f"{name} {a:.2e} ({b:.2e})" for name, (a, b) in errors.items())
    rows = "" if silent else "; rows without keys are not zero"
    print(f"{case}: {'passes' if passed else 'DOES NOT PASS'}: {shown}{rows}", flush=True)
    return {"case": dataclasses.asdict(case), "errors": errors, "passed": passed}


def _error(found: jax.Array, wanted: jax.Array) -> float:
    found, wanted = (np.asarray(x, np.float32) for x in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def measure(case: Case, attend: Callable, turns: int, seconds: float) -> dict[str, float]:
    """Times forward and backward of both in turns."""
    *tokens, mask = inputs(case)
    sides = []
    for name, function in (("fused", attend), ("plain", PLAIN)):
        run = with_gradients(function, mask, jnp.bfloat16)
        do = functools.partial(lambda run: jax.block_until_ready(run(*tokens)), run)
        sides.append(Side(name, do, case.batch))
    return compare(take_turns(sides, turns, seconds), "fused", "plain")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Checks every case and times it; returns what --json writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fused_attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--emulate", choices=sorted(EMULATED), help="the kernel's preparation or emulation instead")
    add("--turns", type=int, default=5)
    add("--seconds", type=float, default=1.0, help="of a turn")
    add("--json", type=pathlib.Path, help="file for the results")
    args = parser.parse_args(argv)
    platform = dpa.platform()
    name = args.emulate or KERNELS.get(platform)
    if name is None:
        raise ValueError(f"{platform} has no fused attention: --emulate=cudnn or flash")
    print("relative errors of the kernel, in parentheses of plain attention in bfloat16")
    results = []
    for case in TOY if args.emulate else CASES:
        attend = EMULATED.get(args.emulate) or functools.partial(dpa.attend, implementation=name)
        results.append(check(case, attend))
        if not args.emulate:
            results[-1] |= measure(case, attend, args.turns, args.seconds)
    if args.json:
        args.json.write_text(json.dumps({"kernel": name, "cases": results}, indent=1) + "\n")
    return results


if __name__ == "__main__":
    sys.exit(0 if all(result["passed"] for result in main()) else 1)
