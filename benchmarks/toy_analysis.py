"""The paper's toy analysis (A.4) redone: what an adapter buys on Gaussian data, and what it costs.

  python -m benchmarks.toy_analysis --output=docs/evidence      # seconds

x0 ~ N(mean, variance), relation r = phi x0. Then x_t = m_t x0 + sqrt(1 - ab_t) eps, with the signal
m_t = sqrt(ab_t) + k_t phi, and the best estimator of x0 errs by
    variance (1 - ab_t) / (m_t^2 variance + 1 - ab_t),
which falls with phi: the paper's argument. Checked here by Monte Carlo: x_t is drawn by the
project's own forward process, and a line is fitted to it by least squares.

The same estimator in the exact bound (eq. 4) is closed-form too: with e = x0 - x0_hat the KL of
the step from t to t - 1 is (A - B k_t phi + k_{t-1} phi)^2 E[e^2] / (2 v). Its sum, with L_T and
L_0, is what a sampler pays, to be compared with the data's entropy, which no bound is below.

Writes toy.json, toy.md (the tables) and toy.png.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import matplotlib
import numpy as np

from contextdiff_jax.diffusion import bound
from contextdiff_jax.diffusion.marginals import diffuse
from contextdiff_jax.diffusion.schedules import Schedule, expand, make_schedule

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the backend is chosen)

STRENGTHS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
LAST_STEPS = 5  # of the process


@dataclasses.dataclass(frozen=True)
class Toy:
    """Gaussian data in one dimension, and a process."""

    schedule: Schedule
    mean: float
    variance: float

    def signal(self, phi: float) -> np.ndarray:
        """Returns m_t, float64 (T + 1,)."""
        root = np.sqrt(self.schedule.alpha_bar)
        return root + root * (1 - root) * phi

    def error(self, phi: float) -> np.ndarray:
        """Returns the best estimator's mean squared error (T + 1,), A.4."""
        noise = 1 - self.schedule.alpha_bar
        return self.variance * noise / (self.signal(phi) ** 2 * self.variance + noise)

    def step_kl(self, phi: float) -> np.ndarray:
        """Returns E KL of the steps t = 2..T in nats (T - 1,)."""
        later, earlier = self.schedule.alpha_bar[2:], self.schedule.alpha_bar[1:-1]
        ratio = later / earlier
        of_x0 = np.sqrt(earlier) * (1 - ratio) / (1 - later)
        of_x_t = np.sqrt(ratio) * (1 - earlier) / (1 - later)
        variance = (1 - earlier) * (1 - ratio) / (1 - later)
        gain_t, gain_s = (np.sqrt(ab) * (1 - np.sqrt(ab)) for ab in (later, earlier))
        factor = of_x0 - of_x_t * gain_t * phi + gain_s * phi
        return factor**2 * self.error(phi)[2:] / (2 * variance)

    def prior_kl(self, phi: float) -> float:
        """Returns L_T in nats, with the bias at the last time."""
        noise = 1 - self.schedule.alpha_bar[-1]
        energy = self.signal(phi)[-1] ** 2 * (self.mean**2 + self.variance)
        return float(0.5 * (energy + noise - np.log(noise) - 1))

    def reconstruction(self, phi: float) -> float:
        """Returns L_0 in nats, a density's."""
        std = bound.decoder_std(self.schedule)
        return float(0.5 * self.error(phi)[1] / std**2 + np.log(std) + 0.5 * np.log(2 * np.pi))

    def entropy(self) -> float:
        """Returns the entropy of the data in nats: no bound is below it."""
        return float(0.5 * np.log(2 * np.pi * np.e * self.variance))


def fitted_error(toy: Toy, phi: float, t: int, count: int, seed: int) -> tuple[float, float]:
    """Returns the mean squared error of a fitted line and its standard error, by Monte Carlo."""
    data_key, noise_key = jax.random.split(jax.random.key(seed))
    x0 = toy.mean + np.sqrt(toy.variance) * jax.random.normal(data_key, (count,))
    noise = jax.random.normal(noise_key, (count,))
    x_t = diffuse(toy.schedule, x0, expand(toy.schedule.gain(t), x0) * phi * x0, t, noise)
    x0, x_t = np.asarray(x0, np.float64), np.asarray(x_t, np.float64)
    columns = np.stack([np.ones_like(x_t), x_t], axis=1)
    squares = np.square(x0 - columns @ np.linalg.lstsq(columns, x0)[0])
    return float(squares.mean()), float(squares.std() / np.sqrt(count))


def analyse(toy: Toy, times: Sequence[int], count: int) -> list[dict[str, Any]]:
    """Returns one row per strength: errors at `times` both ways, and the parts of the bound."""
    rows = []
    for phi in STRENGTHS:
        kl = toy.step_kl(phi)
        parts = {"L_T": toy.prior_kl(phi), "steps": float(kl.sum()), "L_0": toy.reconstruction(phi)}
        rows.append(
            {
                "phi": phi,
                "error": {t: float(toy.error(phi)[t]) for t in times},
                "fitted": {t: fitted_error(toy, phi, t, count, seed=t) for t in times},
                "bound": parts | {"sum": sum(parts.values())},
                "last_steps_kl": float(kl[-LAST_STEPS:].sum()),
            }
        )
    return rows


def table(toy: Toy, rows: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table."""
    times = list(rows[0]["error"])
    head = ["phi", *(f"error at t = {t} (fitted)" for t in times)]
    head += ["bound, nats", "above the entropy", f"KL of the last {LAST_STEPS} steps"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        errors = [f"{row['error'][t]:.4f} ({row['fitted'][t][0]:.4f})" for t in times]
        total = row["bound"]["sum"]
        above = f"{total - toy.entropy():+.4f}"
        lines.append(
            [f"{row['phi']:g}", *errors, f"{total:.4f}", above, f"{row['last_steps_kl']:.2g}"]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(toy: Toy, path: pathlib.Path) -> None:
    """Draws the error and the KL of each step over t, one line per strength."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for phi in STRENGTHS:
        left.plot(toy.error(phi)[1:], label=f"phi = {phi:g}")
        right.plot(np.arange(2, toy.schedule.num_steps + 1), toy.step_kl(phi))
    left.set(xlabel="t", ylabel="error of the best estimator", title="What the objective sees")
    right.set(xlabel="t", ylabel="KL of the step, nats", yscale="log", title="What a sampler pays")
    left.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Writes the analysis; returns its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.toy_analysis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="folder of the results")
    add("--schedule", choices=("cosine", "linear", "scaled_linear"), default="cosine")
    add("--num_steps", type=int, default=1000, help="T")
    add("--mean", type=float, default=0.3)
    add("--variance", type=float, default=0.25)
    add("--count", type=int, default=200_000, help="Monte Carlo samples per figure")
    args = parser.parse_args(argv)
    if args.variance <= 0 or args.count < 3:
        raise ValueError(
            f"variance = {args.variance}, count = {args.count}: must be above 0, at least 3"
        )
    toy = Toy(make_schedule(args.schedule, args.num_steps), args.mean, args.variance)
    times = [max(1, round(share * args.num_steps)) for share in (0.1, 0.5, 0.9)]
    rows = analyse(toy, times, args.count)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "toy.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = table(toy, rows)
    (args.output / "toy.md").write_text(text)
    plot(toy, args.output / "toy.png")
    print(text)
    return rows


if __name__ == "__main__":
    main()
