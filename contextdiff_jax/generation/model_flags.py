"""The flags of sample.py that are of published weights: --model and what goes with it."""

import dataclasses
from collections.abc import Sequence

from absl import flags

from contextdiff_jax.arguments import existing, existing_file, existing_folder
from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.start_pictures import MOST_SIDE, read_control, read_start

# Flags that are nothing without another one.
_TOGETHER = (
    ("strength", "init_image"),
    ("mask", "init_image"),
    ("controlnet", "control"),
    ("control", "controlnet"),
    ("control_scale", "control"),
)

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
    controlnet: flags.FlagHolder
    control: flags.FlagHolder
    control_scale: flags.FlagHolder
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
        for name, other in _TOGETHER:
            if of_models[name] is not None and of_models[other] is None:
                raise ValueError(f"--{name}={of_models[name]}: only together with --{other}")
        if self.controlnet.value is not None:
            existing(self.controlnet.value, "controlnet")
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
        control = None
        if self.control.value is not None:
            scale = 1.0 if self.control_scale.value is None else self.control_scale.value
            picture = read_control(self.control.value)
            control = stable_diffusion.ControlSettings(self.controlnet.value, picture, scale)
        settings = stable_diffusion.Settings(
            self.height.value,
            self.width.value,
            self.negative_prompt.value or "",
            tuple(sampler),
            dtype or "auto",
            start,
            control,
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
            "height", None, "Height of --model's pictures; by default as it was trained.", **sides
        ),
        flags.DEFINE_integer(
            "width", None, "Width of --model's pictures; by default as it was trained.", **sides
        ),
        flags.DEFINE_string(
            "init_image", None, "A picture file that --model's pictures start from, of its size."
        ),
        flags.DEFINE_float(
            "strength",
            None,
            "Share of the steps that change --init_image; 1 draws all anew. By default 0.8, "
            "with --mask 1.",
            lower_bound=0.0,
            upper_bound=1.0,
        ),
        flags.DEFINE_string(
            "mask", None, "A picture as large as --init_image: white is drawn anew, black stays."
        ),
        flags.DEFINE_string(
            "controlnet",
            None,
            "A ControlNet for --model: a folder in diffusers' layout, or one of its own files.",
        ),
        flags.DEFINE_string(
            "control",
            None,
            "A picture file that --model's pictures follow by --controlnet, of their size: edges, "
            "depth or whatever it was trained on.",
        ),
        flags.DEFINE_float(
            "control_scale", None, "How much pictures follow --control; 1 by default, 0 not at all."
        ),
        flags.DEFINE_string(
            "lora", None, "A file of low-rank updates of --model's U-Net, in diffusers' names."
        ),
    )
