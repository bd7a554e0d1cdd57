"""Draws pictures for prompts through the whole cascade of an export.

  python -m contextdiff_jax.sample --export=runs/quickstart/export --output=pictures \
      --prompt="a red circle left of a blue square" --seed=1

The same seed gives the same picture whatever the batch size or the number of devices. An empty
prompt is the null condition. --model=FOLDER instead of --export draws with Stable Diffusion's
published weights, see docs/stable_diffusion.md.

Flags that are left out are what the export's config says: its
samples.seed, .batch_size and .augmentation, its samplers, its dtype. Exit codes: see
contextdiff_jax/entry.py.
"""

from absl import flags, logging
from etils import epath

from contextdiff_jax import entry
from contextdiff_jax.arguments import existing_folder, read_lines
from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.cascade import Cascade, write_pictures
from contextdiff_jax.parallel import distributed
from contextdiff_jax.system import notices

MOST_SIDE = 4096  # pixels

_EXPORT = flags.DEFINE_string("export", None, "Folder written by contextdiff_jax.export or main.")
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Folder of Stable Diffusion 1.x or 2.x in diffusers' layout, drawn instead of --export. The "
    "safety checker is not run.",
)
_NEGATIVE = flags.DEFINE_string(
    "negative_prompt", None, "What pictures of --model must not show, for all of them."
)
_HEIGHT = flags.DEFINE_integer(
    *("height", None),
    "Height of --model's pictures in pixels; what it was trained at by default.",
    lower_bound=1,
    upper_bound=MOST_SIDE,
)
_WIDTH = flags.DEFINE_integer(
    "width", None, "Their width, likewise.", lower_bound=1, upper_bound=MOST_SIDE
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for STAGE/NNNN.png and STAGE/grid.png.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given again for more.")
_PROMPTS = flags.DEFINE_string("prompts", None, "A text file with one prompt per line.")
_REPEAT = flags.DEFINE_integer("repeat", 1, "Pictures per prompt.", lower_bound=1)
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
_PROCESSES = entry.define_process_flags()
flags.mark_flags_as_required(["output"])


def main() -> None:
    entry.join(_PROCESSES())
    prompts = _prompts()
    of_model = _of_model()
    existing_folder(*((_MODEL.value, "model") if of_model else (_EXPORT.value, "export")))
    entry.check_writable(_OUTPUT.value, "output")
    cascade = _published() if of_model else _exported()
    notices.doing("drawing pictures")
    drawn = cascade.draw(
        prompts,
        seed=_SEED.value,
        batch_size=_BATCH.value,
        augmentation=_AUGMENTATION.value,
    )
    for name, images in drawn.items() if distributed.is_main() else ():
        write_pictures(epath.Path(_OUTPUT.value) / name, images, prompts)
        logging.info("wrote %d pictures and grid.png to %s/%s", len(images), _OUTPUT.value, name)
    distributed.wait_for_all("pictures")  # else JAX takes the one that writes for lost


def _of_model() -> bool:
    """Whether published weights are drawn. Raises ValueError for flags that do not go together."""
    if (_EXPORT.value is None) == (_MODEL.value is None):
        raise ValueError(
            "--export and --model are missing: give one of them"
            if _EXPORT.value is None
            else f"--model={_MODEL.value}: not together with --export={_EXPORT.value}"
        )
    of_model = _MODEL.value is not None
    wrong = (_AUGMENTATION,) if of_model else (_NEGATIVE, _HEIGHT, _WIDTH)
    for flag in wrong:
        if flag.value is not None:
            needed = "--export" if of_model else "--model"
            raise ValueError(f"--{flag.name}={flag.value}: only together with {needed}")
    return of_model


def _exported() -> Cascade:
    notices.doing("loading the export")
    return Cascade.load(_EXPORT.value, dtype=_DTYPE.value, sampler=_SAMPLER.value)


def _published() -> Cascade:
    notices.doing("loading the model")
    settings = stable_diffusion.Settings(
        height=_HEIGHT.value,
        width=_WIDTH.value,
        negative=_NEGATIVE.value or "",
        sampler=_SAMPLER.value,
        dtype=_DTYPE.value or "auto",
    )
    return stable_diffusion.load(_MODEL.value, settings)


def _prompts() -> list[str]:
    prompts = list(_PROMPT.value)
    for prompt in prompts:
        if "\n" in prompt:  # prompts.txt, and a file of prompts, have one a line
            raise ValueError(f"--prompt={prompt!r}: must be one line")
    if _PROMPTS.value is not None:
        prompts += read_lines(_PROMPTS.value, "prompts")
    if not prompts:
        raise ValueError("no prompts: give --prompt=TEXT or --prompts=FILE")
    return [prompt for prompt in prompts for _ in range(_REPEAT.value)]


if __name__ == "__main__":
    entry.run(main)
