"""Turns training checkpoints into one self-describing sampling checkpoint.

  python -m contextdiff_jax.export --workdir=runs/quickstart --output=exports/quickstart

The config is read from the checkpoints. Exit codes: see contextdiff_jax/entry.py.
"""

from absl import flags

from contextdiff_jax import entry
from contextdiff_jax.arguments import existing_folder
from contextdiff_jax.runs.export import DTYPES, export_pipeline, trained_config
from contextdiff_jax.system import notices

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that main trained in.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write the export to.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "Type of the stored weights.")
_COPY = flags.DEFINE_bool("copy_encoders", False, "Copy encoders from outside the workdir too.")
flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
    workdir = existing_folder(_WORKDIR.value, "workdir")
    entry.check_writable(_OUTPUT.value, "output")
    notices.doing("exporting")
    export_pipeline(trained_config(workdir), workdir, _OUTPUT.value, _DTYPE.value, _COPY.value)


if __name__ == "__main__":
    entry.run(main)
