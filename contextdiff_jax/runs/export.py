"""Sampling checkpoints: a finished pipeline's EMA weights with all that sampling must know.

    EXPORT/export.json        format, config, steps, identities of encoders, versions, dtype
    EXPORT/STAGE/             Orbax tree: denoiser, adapter
    EXPORT/encoders/NAME/     the pipeline's own encoders (Hugging Face folder with tokenizer)
    EXPORT/README.md          model card; of no concern to who reads the export
    EXPORT/checksums.json     of export.json, the encoders, and each STAGE/checksums.json

Encoders that came from outside (config.encoders.*.path) stay where they are unless copied; their
identity is recorded and checked when the export is read. So are the checksums, before anything
else: what differs from when it was exported is refused (CheckpointError), by the file's name.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.config import Config, EncoderRef, differences, from_config_dict
from contextdiff_jax.config_upgrade import upgraded
from contextdiff_jax.encoders.frozen import tokenizer_folder
from contextdiff_jax.parallel import distributed
from contextdiff_jax.runs.build import RUN_PREFIX, Locate, diffusion_runs, locate_in
from contextdiff_jax.runs.description import FORMAT, Export, read_description, references
from contextdiff_jax.runs.model_card import Trained, write_card
from contextdiff_jax.runs.weights import fixed_weights, whole_ema
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.training import checksums
from contextdiff_jax.training.checkpoints import (
    CheckpointError,
    check_saved,
    load_tree,
    newest_metadata,
    no_checkpoint,
    save_tree,
)

DESCRIPTION = "export.json"
DTYPES = ("float32", "bfloat16")


def export_pipeline(
    config: Config,
    workdir: epath.PathLike,
    output: epath.PathLike,
    dtype: str = "float32",
    copy_encoders: bool = False,
) -> None:
    """Writes the newest EMA weights of the pipeline's diffusion runs to `output`.

    The first stages alone are a cascade too: from the first run without a checkpoint on, runs are
    left out, and a warning names them.

    Raises ValueError where the first has none, CheckpointError where two were trained with configs
    that one export cannot hold, or where weights that a run did not train are not those it had.
    """
    workdir = epath.Path(workdir)
    found = _trained_stages(config, workdir)
    for name, metadata in found.items():
        fixed_weights(metadata, workdir / name)  # what is refused leaves the export that was there
    stages = Stages(config, workdir, found, lambda name: whole_ema(workdir / name))
    write_export(stages, output, dtype, copy_encoders)


@dataclasses.dataclass(frozen=True)
class Stages:
    """What an export is made of.

    workdir: of the config's runs, whose encoders are copied. metadata: of each stage, as its
    checkpoint has it. read: returns a stage's weights and their own metadata, by its name.
    """

    config: Config
    workdir: epath.Path
    metadata: dict[str, dict[str, Any]]
    read: Callable[[str], tuple[Any, dict[str, Any]]]


def write_export(stages: Stages, output: epath.PathLike, dtype: str, copy_encoders: bool) -> None:
    """Writes the weights of stages to `output`; arguments and errors as of `export_pipeline`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
    output, found = epath.Path(output), stages.metadata
    content = {"format": FORMAT, "dtype": dtype, **_described(found)}
    described = from_config_dict(content["config"])
    if distributed.is_main():
        # An export half replaced is none; its description comes back when the rest is whole.
        (output / DESCRIPTION).unlink(missing_ok=True)
        (output / checksums.NAME).unlink(missing_ok=True)
    distributed.wait_for_all("export begins")
    for name in found:
        weights, metadata = stages.read(name)
        save_tree(output / name, jax.tree.map(lambda w: np.asarray(w, jnp.dtype(dtype)), weights))
        content["stages"][name]["step"] = metadata["step"]  # a run may be training on
    if distributed.is_main():
        _copy_encoders(stages.config, stages.workdir, output, copy_encoders)
        with written_whole(output / DESCRIPTION) as file:
            file.write_text(json.dumps(content, indent=2))
        checksums.record(output, _own_files(output, list(found)))
        write_card(output, Trained(described, found, stages.workdir), "contextdiff")
    distributed.wait_for_all("export")
    logging.info("exported %s to %s", ", ".join(found), output)


def _trained_stages(config: Config, workdir: epath.Path) -> dict[str, dict[str, Any]]:
    """Returns the metadata of the newest checkpoints, of the first stages that have one."""
    names = diffusion_runs(config)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        metadata = newest_metadata(workdir / name / "checkpoints")
        if metadata is None:
            break
        found[name] = metadata
    left_out = names[len(found) :]
    if not found:
        raise no_checkpoint(workdir / names[0] / "checkpoints")
    if left_out:
        logging.warning(
            "left out of the export: %s; run %r has no finished checkpoint yet",
            *(", ".join(left_out), left_out[0]),
        )
    return found


def _described(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns what export.json says of the stages; each stage's section is the one it trained by.

    The stages may have been trained by calls of their own, with flags of their own.
    """
    first, *_, last = [*found, *found]
    for name, metadata in found.items():
        lines = differences(_shared(metadata), _shared(found[first]), "config")
        if lines:
            raise CheckpointError(
                f"runs {first!r} (there) and {name!r} (here) were trained by different configs: "
                f"{'; '.join(lines)}; train one of them again, in another --workdir"
            )
    config = upgraded(found[last]["config"])
    trained = {name: upgraded(metadata["config"])["runs"][name] for name, metadata in found.items()}
    config = {**config, "runs": config["runs"] | trained}
    stages = {name: {"step": m["step"], "encoders": m["encoders"]} for name, m in found.items()}
    return {"stages": stages, "config": config, "versions": found[last]["versions"]}


def _shared(metadata: dict[str, Any]) -> dict[str, Any]:
    config = metadata["config"]
    # Folders of encoders may have moved: reading the export compares what they hold.
    encoders = {
        name: {key: value for key, value in ref.items() if key != "path"}
        for name, ref in config["encoders"].items()
    }
    return {"use_adapter": config["use_adapter"], "encoders": encoders}


def trained_config(workdir: epath.PathLike) -> Config:
    """Returns the config that the pipeline's last diffusion run in `workdir` was trained by."""
    found: dict[str, Config] = {}
    for folder in sorted(epath.Path(workdir).glob("*/checkpoints")):
        metadata = newest_metadata(folder)
        if metadata is None:
            continue
        config = from_config_dict(metadata["config"])
        if metadata["run"] in diffusion_runs(config):
            found[metadata["run"]] = config
    if not found:
        raise ValueError(
            f"--workdir={workdir}: has no finished checkpoint of a diffusion run: must be a folder "
            "that contextdiff_jax.main trained in"
        )
    return found[max(found, key=lambda name: found[name].pipeline.index(name))]


def _encoder_folder(output: epath.Path, ref: EncoderRef) -> epath.Path:
    return output / "encoders" / ref.path.removeprefix(RUN_PREFIX).strip("/").replace("/", "_")


def _copy_encoders(config: Config, workdir: epath.Path, output: epath.Path, copy_all: bool) -> None:
    for ref in references(config):
        if not copy_all and not ref.path.startswith(RUN_PREFIX):
            continue
        source, target = locate_in(workdir)(ref), _encoder_folder(output, ref)
        _copy_folder(source, target)
        beside = tokenizer_folder(source)
        if source not in (beside, beside.parent):  # where Stable Diffusion has it
            _copy_folder(beside, target / "tokenizer")


def _own_files(output: epath.Path, stages: list[str]) -> list[str]:
    """Returns what an export's checksums are of; a user's own files beside are nobody's concern."""
    encoders = output / "encoders"
    copied = checksums.files_below(encoders) if encoders.exists() else ()
    of_stages = [f"{name}/{checksums.NAME}" for name in stages]
    return [DESCRIPTION, *of_stages, *(f"encoders/{name}" for name in copied)]


def _copy_folder(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        if item.is_dir():
            _copy_folder(item, target / item.name)
        else:
            item.copy(target / item.name, overwrite=True)


def read_export(folder: epath.PathLike) -> tuple[Export, Locate]:
    """Returns the content of export.json and a function that finds its encoders.

    Raises ValueError when the folder is no export, CheckpointError when a file of it is damaged or
    changed (of the stages: when one is loaded), ConfigError when this version cannot read it.
    """
    folder = epath.Path(folder)
    file = folder / DESCRIPTION
    if not file.exists() and not checksums.recorded(folder):  # with checksums it was lost: damage
        raise ValueError(
            f"--export={folder}: has no export.json: must be an export, which "
            "contextdiff_jax.main and contextdiff_jax.export write"
        )
    check_saved(folder, may_be_unlisted=None)
    export = read_description(file)

    def locate(ref: EncoderRef) -> epath.Path:
        inside = _encoder_folder(folder, ref)
        return inside if inside.exists() else epath.Path(ref.path)

    return export, locate


def load_stage(folder: epath.PathLike, name: str) -> Any:
    """Returns the weights of one stage as float32 host arrays."""
    return jax.tree.map(lambda w: np.asarray(w, np.float32), load_tree(epath.Path(folder) / name))
