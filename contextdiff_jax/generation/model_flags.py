"""The flags of sample.py that are of published weights: --model and what goes with it."""

import dataclasses
from collections.abc import Sequence

from absl import flags

from contextdiff_jax.arguments import existing_file, existing_folder
from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.start_pictures import MOST_SIDE, read_start

flags.disclaim_key_flags()  # --help shows the flags defined here as those of the entry point


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags, None where they are left out."""

    model: flags.FlagHolder
    negative_prompt: flags.FlagHolder
    height: flags.FlagHolder
    width: flags.FlagHolder
    init_image: flags.FlagHolder
    strength: flags.FlagHolder
    mask: flags.FlagHolder
    lora: flags.FlagHolder

    def check(self, export: str | None, **of_exports: object) -> bool:
        """Returns whether published weights are asked for, not an export.

        of_exports: by name, other flags that only exports read, None where left out. Raises
        ValueError where flags do not go together, or the folder is not there.
        """
        folder = self.model.value
        if (export is None) == (folder is None):
            raise ValueError(
                "--export and --model are missing: give one of them"
                if folder is None
                else f"--model={folder}: not together with --export={export}"
            )
        of_models = {name: flag.value for name, flag in vars(self).items() if name != "model"}
        wrong, needed = (of_models, "--model") if folder is None else (of_exports, "--export")
        for name, value in wrong.items():
            if value is not None:
                raise ValueError(f"--{name}={value}: only together with {needed}")
        for name in ("strength", "mask"):
            if of_models[name] is not None and self.init_image.value is None:
                raise ValueError(f"--{name}={of_models[name]}: only together with --init_image")
        if folder is not None:
            existing_folder(folder, "model")
            if self.lora.value is not None:
                existing_file(self.lora.value, "lora")
        return folder is not None

    def load(self, sampler: Sequence[str], dtype: str | None) -> Cascade:
        """Returns the cascade that the flags ask for; raises as stable_diffusion.load does."""
        start = None
        if self.init_image.value is not None:
            start = read_start(self.init_image.value, self.mask.value, self.strength.value)
        settings = stable_diffusion.Settings(
            self.height.value,
            self.width.value,
            self.negative_prompt.value or "",
            tuple(sampler),
            dtype or "auto",
            start,
            self.lora.value,
        )
        return stable_diffusion.load(self.model.value, settings)


def define_model_flags() -> ModelFlags:
    """Defines the flags."""
    sides = {"lower_bound": 1, "upper_bound": MOST_SIDE}
    return ModelFlags(
        flags.DEFINE_string(
            "model",
            None,
            "Folder of Stable Diffusion 1.x or 2.x in diffusers' layout, drawn instead of "
            "--export. The safety checker is not run.",
        ),
        flags.DEFINE_string(
            "negative_prompt", None, "What pictures of --model must not show, for all of them."
        ),
        flags.DEFINE_integer(
            "height", None, "Of --model's pictures; what it was trained at by default.", **sides
        ),
        flags.DEFINE_integer("width", None, "Of --model's pictures, likewise.", **sides),
        flags.DEFINE_string(
            "init_image", None, "A picture file that --model's pictures start from, of its size."
        ),
        flags.DEFINE_float(
            "strength",
            None,
            "Share of the steps that are taken from --init_image; 1 draws all anew. 0.8 by "
            "default, 1 with --mask.",
            lower_bound=0.0,
            upper_bound=1.0,
        ),
        flags.DEFINE_string(
            "mask", None, "A picture as large as --init_image: white is drawn anew, black stays."
        ),
        flags.DEFINE_string(
            "lora", None, "A file of low-rank updates of --model's U-Net, in diffusers' names."
        ),
    )
