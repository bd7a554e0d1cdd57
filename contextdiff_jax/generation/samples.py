"""Pictures as files: one each, a grid, and the requests that they were drawn for."""

from collections.abc import Sequence

import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.requests import Request, of_captions, values_of
from contextdiff_jax.config import SamplesConfig
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.request_files import write_requests
from contextdiff_jax.parallel import distributed
from contextdiff_jax.spaces.pictures import grid, to_uint8, write_png
from contextdiff_jax.system.atomic_write import sweep


def write_pictures(
    folder: epath.PathLike,
    images: np.ndarray,
    requests: Sequence[Request],
    columns: int | None = None,
    conditions: Sequence[Condition] = (),
) -> None:
    """Writes NNNN.png per image, grid.png, and what `write_requests` writes.

    Of conditions that say something of places, grid_NAME.png shows it over the pictures.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    for index, image in enumerate(to_uint8(images)):
        write_png(folder / f"{index:04d}.png", image)
    write_png(folder / "grid.png", grid(images, columns))
    for condition in {each.name: each for each in conditions if not each.of_picture}.values():
        values = values_of(requests, condition)
        over = [condition.drawn_over(*each) for each in zip(values, to_uint8(images), strict=True)]
        if over and over[0] is not None:
            shown = np.stack(over).astype(np.float32) / 127.5 - 1
            write_png(folder / f"grid_{condition.name}.png", grid(shown, columns))
    write_requests(folder, requests)


def draw_samples(export: epath.PathLike, samples: SamplesConfig, output: epath.PathLike) -> None:
    """Draws a config's sample prompts through the cascade into `output`/STAGE."""
    cascade = Cascade.load(export)
    requests = of_captions(samples.prompts, cascade.conditions)
    drawn = cascade.draw(
        requests,
        seed=samples.seed,
        batch_size=samples.batch_size,
        augmentation=samples.augmentation,
    )
    for name, images in drawn.items() if distributed.is_main() else ():
        folder = epath.Path(output) / name
        write_pictures(folder, images, requests, conditions=cascade.conditions)
    distributed.wait_for_all("samples")  # else JAX takes the one that writes for lost
    logging.info("samples are in %s", output)
