"""Draws pictures through the whole cascade of an export, one for each request.

  python -m contextdiff_jax.sample --export=runs/quickstart/export --output=pictures \
      --prompt="a red circle left of a blue square" --seed=1

A request gives a value for each condition of the export: --prompt where that is text, --label where
it is a class, --layout where it is boxes, --context and --query where it is pictures in context,
and --requests=FILE for all of them, one per line: {"text": "a red circle"}. An empty prompt, or
null in a file, leaves the condition out. The same seed gives the same picture whatever the batch
size or the number of devices. What you leave out is taken from the export's config: its
samples.seed, .batch_size and .augmentation, its samplers, its dtype.

With --invert the first stage turns given pictures into noise, each under its own request, and draws
them again from it, by DDIM:

  python -m contextdiff_jax.sample --export=EXPORT --output=pictures --invert=red.png \
      --prompt="a red circle" --edit="a blue circle" --sampler=num_steps=200

With --model=FOLDER, Stable Diffusion is drawn instead of an export: docs/stable_diffusion.md.
Exit codes: see contextdiff_jax/entry.py.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags, logging
from etils import epath

from contextdiff_jax import entry
from contextdiff_jax.arguments import existing_folder, read_images, read_lines
from contextdiff_jax.conditions.requests import Request
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.inversion import Inverted, check_invertible, invert_pictures
from contextdiff_jax.generation.model_flags import define_model_flags
from contextdiff_jax.generation.request_flags import Wanted, wanted
from contextdiff_jax.generation.samples import write_pictures
from contextdiff_jax.parallel import distributed
from contextdiff_jax.runs.build import asked_conditions
from contextdiff_jax.runs.description import Export
from contextdiff_jax.runs.export import read_export
from contextdiff_jax.spaces.pictures import grid, write_png
from contextdiff_jax.system import notices

_EXPORT = flags.DEFINE_string("export", None, "Folder written by contextdiff_jax.export or main.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for STAGE/NNNN.png and STAGE/grid.png.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given again for more.")
_PROMPTS = flags.DEFINE_string("prompts", None, "A text file with one prompt per line.")
_LABEL = flags.DEFINE_multi_string("label", [], "The name of a class; may be given again for more.")
_LAYOUT = flags.DEFINE_multi_string(
    "layout",
    [],
    "Boxes, each a class and its corners x0 y0 x1 y1 in sides of the picture, y downwards: "
    '"red circle 0.1 0.1 0.5 0.5; blue square 0.5 0.5 0.9 0.9". May be given again for more.',
)
_REQUESTS = flags.DEFINE_string(
    "requests",
    None,
    "A file with one JSON object per line, which names every condition of the export: "
    '{"text": "a red circle"}. null leaves the condition out.',
)
_CONTEXT = flags.DEFINE_multi_string(
    "context",
    [],
    "A picture file that shows how pictures look, for every prompt of an in-context export; may be "
    "given again for more.",
)
_QUERY = flags.DEFINE_string(
    "query", None, "A picture file whose structure the pictures follow, for every prompt."
)
_REPEAT = flags.DEFINE_integer("repeat", 1, "Pictures per request.", lower_bound=1)
_INVERT = flags.DEFINE_multi_string(
    "invert",
    [],
    "A picture to turn into noise and to draw again by the first stage, one per request; "
    "STAGE/inverted.png shows them side by side.",
)
_EDIT = flags.DEFINE_multi_string(
    "edit", [], "A prompt or label to draw an --invert with, too; one for each --invert."
)
_SEED = entry.define_seed("seed", None, "Seed of all noise; the export's by default.")
_BATCH = flags.DEFINE_integer(
    "batch_size", None, "Pictures drawn at a time; the export's by default.", lower_bound=1
)
_AUGMENTATION = entry.define_augmentation()
_SAMPLER = flags.DEFINE_multi_string(
    "sampler",
    [],
    "Sampler settings, e.g. --sampler=num_steps=20 for every stage or "
    "--sampler=base.guidance_scale=3 for one. Fields: see sampling/config.py.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["auto", "float32", "bfloat16"], "Compute dtype; the export's by default."
)
_MODEL = define_model_flags()
_PROCESSES = entry.define_process_flags()
flags.mark_flags_as_required(["output"])


def main() -> None:
    entry.join(_PROCESSES())
    given = {"text": _prompts(), "label": _LABEL.value, "layout": _LAYOUT.value}
    in_context = {"context": _CONTEXT.value, "query": _QUERY.value}
    asked = wanted(given, _REQUESTS.value, _EDIT.value, in_context)
    _check_inversion(len(asked.requests))
    published = _MODEL.check(
        _EXPORT.value, augmentation=_AUGMENTATION.value, invert=_INVERT.value or None
    )
    if not published:
        existing_folder(_EXPORT.value, "export")
    entry.check_writable(_OUTPUT.value, "output")
    notices.doing("loading the model" if published else "loading the export")
    if published:
        cascade, pictures = _MODEL.load(_SAMPLER.value, _DTYPE.value), None
    else:
        cascade, pictures = _load_export(asked)
    asked.check(cascade.conditions)
    requests = asked.completed(cascade.conditions)
    notices.doing("drawing pictures")
    if pictures is None:
        _draw(cascade, [request for request in requests for _ in range(_REPEAT.value)])
    else:
        _invert(cascade, pictures, asked)
    distributed.wait_for_all("pictures")  # else JAX takes the one that writes for lost


def _load_export(asked: Wanted) -> tuple[Cascade, np.ndarray | None]:
    """Returns the stages to draw by, and the pictures to invert (None for none)."""
    opened = read_export(_EXPORT.value)
    stages = list(opened[0].stages)[: 1 if _INVERT.value else None]
    asked.check(asked_conditions(opened[0].config, stages))
    pictures = _pictures(opened[0])
    settings = {"dtype": _DTYPE.value, "sampler": _SAMPLER.value, "opened": opened}
    return Cascade.load(_EXPORT.value, **settings).until(stages[-1]), pictures


def _draw(cascade: Cascade, requests: Sequence[Request]) -> None:
    drawn = cascade.draw(
        requests,
        seed=_SEED.value,
        batch_size=_BATCH.value,
        augmentation=_AUGMENTATION.value,
    )
    for name, images in drawn.items() if distributed.is_main() else ():
        _write(cascade, name, images, requests)


def _write(cascade: Cascade, stage: str, images: np.ndarray, requests: Sequence[Request]) -> None:
    folder = epath.Path(_OUTPUT.value) / stage
    write_pictures(folder, images, requests, conditions=cascade.conditions)
    logging.info("wrote %d pictures and grid.png to %s/%s", len(images), _OUTPUT.value, stage)


def _prompts() -> list[str]:
    prompts = list(_PROMPT.value)
    for prompt in prompts:
        if "\n" in prompt:  # prompts.txt, and a file of prompts, have one a line
            raise ValueError(f"--prompt={prompt!r}: must be one line")
    return prompts + ([] if _PROMPTS.value is None else read_lines(_PROMPTS.value, "prompts"))


# -- inversion --------------------------------------------------------------------------------


def _check_inversion(count: int) -> None:
    """Raises ValueError for flags that do not go together with --invert, or need it."""
    inverted, edits = len(_INVERT.value), len(_EDIT.value)
    if not inverted:
        if edits:
            raise ValueError(f"--edit={_EDIT.value[0]}: give --invert=IMAGE, which it edits")
        return
    if inverted != count:
        raise ValueError(f"{inverted} --invert for {count} requests: must be as many")
    if edits not in (0, inverted):
        raise ValueError(f"{edits} --edit for {inverted} --invert: must be as many")
    unread = {"seed": _SEED.value, "augmentation": _AUGMENTATION.value}
    unread["repeat"] = None if _REPEAT.value == 1 else _REPEAT.value
    for flag, value in unread.items():
        if value is not None:
            raise ValueError(f"--{flag}={value}: not with --invert, which draws no noise")


def _pictures(export: Export) -> np.ndarray | None:
    """Returns the pictures to invert (N, H, W, 3) uint8, None where there are none."""
    if not _INVERT.value:
        return None
    first = check_invertible(export, _SAMPLER.value)
    return read_images(_INVERT.value, export.config.runs[first].data.resolution, "invert")


def _invert(cascade: Cascade, pictures: np.ndarray, asked: Wanted) -> None:
    edited = asked.edited(cascade.conditions)
    requests = asked.completed(cascade.conditions)
    inverted = invert_pictures(cascade, pictures, requests, edited, _BATCH.value)
    _log_errors(inverted)
    if distributed.is_main():
        name = cascade.stages[0].name
        images = inverted.redrawn if inverted.edited is None else inverted.edited
        _write(cascade, name, images, edited or requests)
        rows = inverted.rows()
        columns = len(rows) // len(pictures)
        write_png(epath.Path(_OUTPUT.value) / name / "inverted.png", grid(rows, columns))


def _log_errors(inverted: Inverted) -> None:
    errors = inverted.errors()
    worst = int(np.argmax(errors))
    logging.info(
        "round trip of %d pictures: RMS %.2f of 255 grey levels, at most %.2f (%s)",
        *(len(errors), float(np.sqrt(np.mean(errors**2))), errors[worst], _INVERT.value[worst]),
    )


if __name__ == "__main__":
    entry.run(main)
