"""Turns training checkpoints into one self-describing sampling checkpoint.

  python -m contextdiff_jax.export --workdir=runs/quickstart --output=exports/quickstart

--config=FILE instead of --workdir exports, untrained, the weights that its one drawing run starts
from, so that `sample` can draw with published weights. --format=diffusers writes a run in Stable
Diffusion's latents as a folder that diffusers loads. README.md in the folder is its model card.

The config is read from the checkpoints. Exit codes: see contextdiff_jax/entry.py.
"""

from absl import flags
from etils import epath

from contextdiff_jax import command_line, entry
from contextdiff_jax.arguments import existing_folder
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.runs.export import DESCRIPTION, DTYPES, export_pipeline, trained_config
from contextdiff_jax.runs.export_begun import export_begun
from contextdiff_jax.runs.export_diffusers import export_diffusers
from contextdiff_jax.runs.published import INDEX
from contextdiff_jax.system import notices

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that main trained in.")
_CONFIG = command_line.define_config(
    "Config of a run to export untrained, with the weights that it starts from."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write the export to.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Type of the stored weights.")
_FORMAT = flags.DEFINE_enum(
    "format",
    "contextdiff",
    ["contextdiff", "diffusers"],
    "What reads the export: this project's programs, or diffusers' StableDiffusionPipeline.",
)
_COPY = flags.DEFINE_bool("copy_encoders", False, "Copy encoders from outside the workdir too.")
flags.mark_flags_as_required(["output"])


def main() -> None:
    if (_WORKDIR.value is None) == (_CONFIG.value is None):
        raise ValueError("--workdir or --config must be given, one of the two")
    entry.check_writable(_OUTPUT.value, "output")
    if _CONFIG.value is not None:
        if _FORMAT.value != "contextdiff":
            raise ValueError(f"--format={_FORMAT.value}: must be contextdiff with --config")
        _check_empty_of_others()
        config = from_config_dict(_CONFIG.value)
        export_begun(config, _OUTPUT.value, _DTYPE.value, _COPY.value)
        return
    workdir = existing_folder(_WORKDIR.value, "workdir")
    _check_empty_of_others()
    notices.doing("exporting")
    config = trained_config(workdir)
    if _FORMAT.value == "contextdiff":
        export_pipeline(config, workdir, _OUTPUT.value, _DTYPE.value, _COPY.value)
        return
    if _DTYPE.value != "float32":
        raise ValueError(f"--dtype={_DTYPE.value}: must be float32 with --format=diffusers")
    if _COPY.value:
        raise ValueError("--copy_encoders: not with --format=diffusers, which holds them anyway")
    export_diffusers(config, workdir, _OUTPUT.value)


def _check_empty_of_others() -> None:
    """Raises ValueError where --output holds an export of the other format, which would remain."""
    other = {"contextdiff": INDEX, "diffusers": DESCRIPTION}[_FORMAT.value]
    if (epath.Path(_OUTPUT.value) / other).exists():
        raise ValueError(
            f"--output={_OUTPUT.value}: holds {other}, of an export of another --format than "
            f"{_FORMAT.value}: must be another folder"
        )


if __name__ == "__main__":
    entry.run(main)
