"""The cost of the adapter as a table: parameters, operations, training and sampling time."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from contextdiff_jax.evaluation.curves import Curve
from contextdiff_jax.evaluation.results import Result, Table

RATE = "images_per_second"
_PAPER = (
    "The paper's Table 5, for its own models: adapter 188 M parameters on 3 B; training 0.79 to "
    "0.83 s/image (+5 %); sampling 13.2 to 13.4 s/image (+1.5 %)."
)


_TRAINED = ("denoiser", "adapter", "relation", "conditions")


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What one network of a cascade costs, with or without the adapter.

    parameters: by part (denoiser, adapter, conditions, each frozen encoder). training_flops,
    sampling_flops: multiplications and additions of matrix products and convolutions per image, of
    a training step and of a whole sampling run. sampling_seconds: measured, per picture, one per
    turn.
    """

    stage: str
    adapter: bool
    parameters: dict[str, int]
    training_flops: float
    sampling_flops: float
    sampling_seconds: tuple[float, ...]

    @property
    def trained(self) -> int:
        """Parameters that training changes."""
        return sum(self.parameters.get(name, 0) for name in _TRAINED)


def training_seconds(runs: Mapping[str, Mapping[str, Curve]]) -> dict[str, float]:
    """Returns the seconds per image of training runs: of the median rate they logged.

    Raises ValueError for a run that logged none.
    """
    seconds = {}
    for label, curves in runs.items():
        if RATE not in curves:
            raise ValueError(f"run {label!r} logged no {RATE}")
        rate = float(np.median(curves[RATE][1]))
        if not rate > 0:
            raise ValueError(f"run {label!r} logged {RATE} = {rate}: must be above 0")
        seconds[label] = 1.0 / rate
    return seconds


def measure(
    costs: Sequence[StageCost], training: Mapping[str, float], protocol: Mapping[str, object]
) -> Result:
    """Tabulates the stages' costs and the runs' training times.

    costs: of each stage in turn, without the adapter (if it was measured so), then with it.
    """
    rows = [_row(cost, _without(costs, cost)) for cost in costs]
    tables = [Table("cost", _COLUMNS, tuple(rows), f"More: than without the adapter. {_PAPER}")]
    if training:
        first = next(iter(training.values()))
        tables.append(
            Table(
                "training",
                ("run", "s/image", "against the first"),
                tuple((n, s, None if s == first else _more(s, first)) for n, s in training.items()),
                "Of the median images_per_second that each run logged, on its own machine.",
            )
        )
    return Result(
        title="Cost of the adapter",
        summary="Parameters and operations of each stage with the adapter, and with it switched "
        "off, and the time of sampling measured here in turns.",
        values={
            "stages": [
                dataclasses.asdict(cost) | {"sampling_seconds": list(cost.sampling_seconds)}
                for cost in costs
            ],
            "training_seconds": dict(training),
        },
        protocol=dict(protocol),
        tables=tuple(tables),
        warnings=_warnings(costs),
    )


_COLUMNS = (
    "stage",
    "adapter",
    "trained parameters",
    "frozen encoders",
    "training GFLOP/image",
    "training, more",
    "sampling GFLOP/image",
    "sampling, more",
    "sampling s/image",
    "time, more",
)


def _row(cost: StageCost, plain: StageCost | None) -> tuple:
    def more(name: str) -> str | None:
        if plain is None:
            return None
        return _more(getattr(cost, name), getattr(plain, name))

    frozen = sum(cost.parameters.values()) - cost.trained
    seconds = float(np.median(cost.sampling_seconds))
    slower = None
    if plain is not None:
        slower = _more(seconds, float(np.median(plain.sampling_seconds)))
    return (
        cost.stage,
        "with" if cost.adapter else "without",
        cost.trained,
        frozen,
        cost.training_flops / 1e9,
        more("training_flops"),
        cost.sampling_flops / 1e9,
        more("sampling_flops"),
        seconds,
        slower,
    )


def _without(costs: Sequence[StageCost], cost: StageCost) -> StageCost | None:
    return next(
        (c for c in costs if cost.adapter and c.stage == cost.stage and not c.adapter), None
    )


def _more(value: float, than: float) -> str:
    return f"{value / than - 1.0:+.1%}"


def _warnings(costs: Sequence[StageCost]) -> tuple[str, ...]:
    """Says where the turns of one side spread more than the two sides differ."""
    found = []
    for cost in costs:
        plain = _without(costs, cost)
        if plain is None or len(cost.sampling_seconds) < 2:
            continue
        spread = max(np.ptp(side.sampling_seconds) for side in (cost, plain))
        apart = abs(np.median(cost.sampling_seconds) - np.median(plain.sampling_seconds))
        if apart < spread:
            found.append(
                f"{cost.stage}: single timings spread by {spread:.2g} s/image, more than the two "
                f"sides differ ({apart:.2g} s): the machine was busy, or the difference is small"
            )
    return tuple(found)
