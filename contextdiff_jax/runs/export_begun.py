"""An export of what a run begins with, before any step: published weights, to be drawn from."""

import dataclasses

import jax
from etils import epath

from contextdiff_jax.config import Config
from contextdiff_jax.encoders.tensor_files import listed
from contextdiff_jax.runs.build import (
    RUN_PREFIX,
    LoadedEncoders,
    build_task,
    checkpoint_metadata,
    diffusion_runs,
    locate_in,
)
from contextdiff_jax.runs.description import references
from contextdiff_jax.runs.export import Stages, write_export
from contextdiff_jax.runs.start import start
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.training.parameter_names import by_name


def export_begun(
    config: Config, output: epath.PathLike, dtype: str = "float32", copy_encoders: bool = False
) -> None:
    """Writes what the pipeline's one drawing run starts from to `output`, its step 0.

    Raises ValueError where the pipeline has other runs than that one, where parameters would begin
    at random, and as `validate` and `start` do.
    """
    name, nowhere = _run(config), epath.Path(".")
    validate(config)
    run = dataclasses.replace(config.runs[name], trainable=())  # so that all is read at once
    whole = dataclasses.replace(config, runs={**config.runs, name: run})
    task = build_task(whole, name, LoadedEncoders(whole, locate_in(nowhere)))
    weights = start(whole, name, task, nowhere, None).weights
    there = by_name(weights)
    shapes = by_name(jax.eval_shape(task.init, jax.random.key(0)))
    random = [each for each in shapes if each not in there]
    if random:
        raise ValueError(
            f"config.runs.{name}.start_from leaves {listed(random)} at random values: must take "
            "all parameters, as nothing is trained"
        )
    metadata = {**checkpoint_metadata(config, name, task, ()), "step": 0}
    stages = Stages(config, nowhere, {name: metadata}, lambda _: (weights, metadata))
    write_export(stages, output, dtype, copy_encoders)


def _run(config: Config) -> str:
    names = diffusion_runs(config)
    paths = [config.runs[name].start_from.path for name in names]
    if len(names) != 1 or not paths[0] or paths[0].startswith(RUN_PREFIX):
        raise ValueError(
            f"config.pipeline has the drawing runs {', '.join(names) or '(none)'}: must be one, "
            "with a folder in its start_from.path, to be exported untrained"
        )
    for ref in references(config):
        if ref.path.startswith(RUN_PREFIX):
            raise ValueError(
                f"encoder {ref.path!r} is trained by the pipeline: must be a folder where nothing "
                "is trained"
            )
    return names[0]
