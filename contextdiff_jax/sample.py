"""Draws pictures for prompts through the whole cascade of an export.

  python -m contextdiff_jax.sample --export=runs/quickstart/export --output=pictures \
      --prompt="a red circle left of a blue square" --seed=1

The same seed gives the same picture whatever the batch size or the number of devices. An empty
prompt is the null condition. Flags that are left out are what the export's config says: its
samples.seed, .batch_size and .augmentation, its samplers, its dtype. Exit codes: see
contextdiff_jax/entry.py. With --model=FOLDER, Stable Diffusion is drawn instead of an export, see
docs/stable_diffusion.md.
"""

from absl import flags, logging
from etils import epath

from contextdiff_jax import entry
from contextdiff_jax.arguments import existing_folder, read_lines
from contextdiff_jax.generation.cascade import Cascade, write_pictures
from contextdiff_jax.generation.model_flags import define_model_flags
from contextdiff_jax.parallel import distributed
from contextdiff_jax.system import notices

_EXPORT = flags.DEFINE_string("export", None, "Folder written by contextdiff_jax.export or main.")
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
_MODEL = define_model_flags()
_PROCESSES = entry.define_process_flags()
flags.mark_flags_as_required(["output"])


def main() -> None:
    entry.join(_PROCESSES())
    prompts = _prompts()
    published = _MODEL.check(_EXPORT.value, augmentation=_AUGMENTATION.value)
    if not published:
        existing_folder(_EXPORT.value, "export")
    entry.check_writable(_OUTPUT.value, "output")
    notices.doing("loading the model" if published else "loading the export")
    if published:
        cascade = _MODEL.load(_SAMPLER.value, _DTYPE.value)
    else:
        cascade = Cascade.load(_EXPORT.value, dtype=_DTYPE.value, sampler=_SAMPLER.value)
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
