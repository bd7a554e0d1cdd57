"""Training on precomputed latents: are they what the run's first stage would encode?"""

from absl import logging

from contextdiff_jax.config import RunConfig
from contextdiff_jax.data.example import Source
from contextdiff_jax.data.latents import Latents, LatentSource
from contextdiff_jax.training.task import Task


def with_latents(run: RunConfig, source: Source, task: Task) -> Source:
    """Returns the source with the run's stored latents for its pictures; as it is without any.

    Raises DataError (ValueError) naming both sides where they were made by another first stage, of
    other data, or of pictures prepared otherwise.
    """
    folder = run.data.latents
    if not folder:
        return source
    latents = Latents(folder)
    theirs, ours = latents.metadata.stage, task.identities()["first_stage"]
    if theirs != ours:
        raise ValueError(
            f"the latents in {folder} were made by the first stage {theirs}, "
            f"{run.task.first_stage.path!r} is {ours}"
        )
    found = LatentSource(source, latents, run.data)
    logging.info("latents are read from %s, no picture is decoded", folder)
    return found
