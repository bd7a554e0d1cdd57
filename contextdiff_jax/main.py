"""Trains a pipeline of runs and draws its samples; the same command resumes.

  python -m contextdiff_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Any key can be overridden: --config.runs.base.steps=100. docs/training.md says which keys may change
when a run goes on, such as the learning rate. On several machines every process gets this command,
with the same workdir: docs/many_machines.md. Exit codes: see contextdiff_jax/entry.py.
"""

from absl import flags
from etils import epath

from contextdiff_jax import command_line, entry
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.generation.samples import draw_samples
from contextdiff_jax.runs.train import train_pipeline
from contextdiff_jax.runs.validation import validate

_CONFIG = command_line.define_config(
    "Config file, with a preset after a colon: configs/laion.py:tiny."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder (local or bucket) of the runs' results.")
_RUN = flags.DEFINE_string("run", None, "Train only this run of the pipeline, e.g. base.")
_PROCESSES = entry.define_process_flags()
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    config = from_config_dict(_CONFIG.value)
    entry.join(_PROCESSES())
    validate(config, _RUN.value)
    workdir = epath.Path(_WORKDIR.value)
    entry.check_writable(workdir, "workdir")
    entry.keep_compiled_programs(workdir / "compiled")
    train_pipeline(config, workdir, draw_samples, _RUN.value)


if __name__ == "__main__":
    entry.run(main)
