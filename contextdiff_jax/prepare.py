"""Encodes every caption, or picture, of a run's data once, so that training does not have to.

  python -m contextdiff_jax.prepare --config=configs/laion.py --run=base --output=embeddings \
      --config.data_path='laion400m/{00000..41454}.tar'

Then train with --config.runs.base.data.embeddings=embeddings. The same command resumes, and adds
preview prompts that are new. On a cluster, Apache Beam does it; its options come after --:

  pip wheel --no-deps --wheel-dir=dist .
  python -m contextdiff_jax.prepare ... --runner=DataflowRunner -- --project=P --region=R \
      --extra_package=dist/contextdiff_jax-VERSION-py3-none-any.whl

Pictures of a run in latents are encoded to latents, mirrored pictures too where data.flip is True:

  python -m contextdiff_jax.prepare --config=configs/stable_diffusion.py --run=base \
      --what=latents --output=latents --config.model=MODEL --config.data_path='laion/*.tar'

Then train with --config.runs.base.data.latents=latents.

Exit codes: see contextdiff_jax/entry.py.
"""

import functools
from collections.abc import Sequence

from absl import flags
from etils import epath

from contextdiff_jax import command_line, entry
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.runs.beam_packages import check_packages
from contextdiff_jax.runs.prepare import Job, ShardWorker, Worker, prepare
from contextdiff_jax.runs.prepare_latents import LatentWorker, check_latent_run
from contextdiff_jax.runs.validation import check_text_run, validate
from contextdiff_jax.system import notices

_CONFIG = command_line.define_config(
    "Config file, with a preset after a colon: configs/laion.py:tiny."
)
_RUN = flags.DEFINE_string("run", None, "The run whose data and preview prompts are encoded.")
_WHAT = flags.DEFINE_enum(
    "what", "embeddings", ["embeddings", "latents"], "Captions to embeddings, pictures to latents."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the embeddings, or latents.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs, for encoders trained in it.")
_BATCH = flags.DEFINE_integer(
    "batch_size", None, "Texts (256) or pictures (16) encoded at a time.", lower_bound=1
)
_SHARD = flags.DEFINE_integer("shard_size", 10_000, "Samples per file.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Type of what is stored.")
_RUNNER = flags.DEFINE_string(
    "runner", None, "Beam runner, e.g. DirectRunner; without it Beam is not used."
)
flags.mark_flags_as_required(["config", "run", "output"])


def main(options: Sequence[str]) -> None:
    if options and _RUNNER.value is None:
        raise ValueError(f"{options[0]!r}: must come with --runner, options after -- are Beam's")
    if _RUNNER.value is not None:
        check_packages(_RUNNER.value, options)
    config = from_config_dict(_CONFIG.value)
    validate(config, _RUN.value, platform=None)
    of_latents = _WHAT.value == "latents"
    if of_latents:
        check_latent_run(config, _RUN.value)
    else:
        check_text_run(config, _RUN.value, _WORKDIR.value)
    entry.check_writable(_OUTPUT.value, "output")
    if _WORKDIR.value is not None:
        entry.keep_compiled_programs(epath.Path(_WORKDIR.value) / "compiled")
    job = Job(
        config=config,
        run=_RUN.value,
        workdir=_WORKDIR.value or "",
        output=_OUTPUT.value,
        batch_size=_BATCH.value or (16 if of_latents else 256),
        shard_size=_SHARD.value,
        dtype=_DTYPE.value,
    )
    notices.doing(f"encoding {'pictures' if of_latents else 'captions'}, shard by shard")
    encode = functools.partial(_encode_with_beam, options) if _RUNNER.value else None
    prepare(job, encode, LatentWorker if of_latents else Worker)


def _encode_with_beam(
    options: Sequence[str], job: Job, worker: ShardWorker, missing: list[int]
) -> None:
    try:
        from contextdiff_jax.runs.prepare_beam import encode_with_beam
    except ImportError as error:
        raise ValueError(
            f"--runner={_RUNNER.value}: needs the package apache-beam: {error}"
        ) from error
    # Beam's workers load their own.
    encode_with_beam(job, type(worker), missing, _RUNNER.value, options)


if __name__ == "__main__":
    entry.run(main, takes_rest=True)
