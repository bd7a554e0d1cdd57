"""Sampling through a whole cascade, one compiled program per stage."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.requests import Request, check_requests, null_request
from contextdiff_jax.config import Config, SamplesConfig
from contextdiff_jax.generation.filtered import Shown, filtered
from contextdiff_jax.generation.sampler_flags import asked_samplers, overridden, parse_overrides
from contextdiff_jax.generation.stage_weights import check_weights
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.audit import audit, report
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, replicated, shardings_of
from contextdiff_jax.runs.build import LoadedEncoders, Locate, build_task
from contextdiff_jax.runs.description import Export
from contextdiff_jax.runs.export import load_stage, read_export
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.system.seeds import check_seed
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.task_config import with_networks
from contextdiff_jax.training.checkpoints import CheckpointError


@dataclasses.dataclass
class Stage:
    """One network of the cascade, on the devices, with its sampler."""

    name: str
    task: DiffusionTask
    params: Any
    frozen: Any
    sampler: SamplerConfig
    mesh: jax.sharding.Mesh

    @functools.cached_property
    def program(self) -> Any:
        """The compiled sampling run: (params, frozen, batch, keys) -> images."""

        def draw(params, frozen, batch, keys):
            return self.task.sample(params, frozen, batch, keys, self.sampler)

        return jit_on_mesh(draw, self.mesh)

    def identity(self) -> dict[str, str]:
        """Returns digests of the weights (all are read) and the identities of the encoders.

        All processes must call it.
        """
        digest = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(self.params):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}\n".encode())
            digest.update(np.ascontiguousarray(distributed.to_host(leaf)))
        return {"weights": digest.hexdigest()[:16], **self.task.identities()}


class Cascade:
    """The stages of an export, from the request to the largest picture.

    samples: seed, batch size and augmentation where a call does not say. shown: the filter of its
    pictures; None hands out all.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        mesh: jax.sharding.Mesh,
        samples: SamplesConfig | None = None,
        shown: Shown | None = None,
    ):
        self.stages = list(stages)
        self.shown = shown
        self.samples = samples or SamplesConfig()
        self._mesh = mesh

    @classmethod
    def load(
        cls,
        folder: epath.PathLike,
        *,
        dtype: str | None = None,
        sampler: Sequence[str] = (),
        opened: tuple[Export, Locate] | None = None,
    ) -> "Cascade":
        """Reads an export. sampler: settings such as "num_steps=20" or "base.guidance_scale=3".

        opened: what `read_export` returned of it, where it was called before.

        Weights lie on the mesh that the config names, where the devices here fit it; else each
        device holds them whole, and a warning says so. Stages share their encoders.

        Raises CheckpointError when the encoders found are not the ones trained with, ValueError
        for a description that is not allowed, a sampler that is not there or not of it, or weights
        that are not finite, do not fit their networks, or cannot fit the devices.
        """
        export, locate = opened or read_export(folder)
        config = export.config
        if dtype is not None:
            config = dataclasses.replace(config, dtype=dtype)
        mesh = _sampling_mesh(config)
        samplers = asked_samplers(config, list(export.stages), sampler)
        config = _for_this_machine(config)
        encoders = LoadedEncoders(config, locate)
        placed = Placed(config.mesh, mesh)
        stages = []
        for name, recorded in export.stages.items():
            task = build_task(config, name, encoders)
            _check_encoders(task, name, recorded.encoders)
            frozen = placed.frozen(task, name)
            boxed = jax.eval_shape(task.init, jax.random.key(0))
            weights = _load_weights(folder, name, boxed)
            params = placed.add(name, weights, lambda boxed=boxed: boxed)
            del weights  # of two large stages one at a time
            stages.append(Stage(name, task, params, frozen, samplers[name], mesh))
        placed.describe()
        return cls(stages, mesh, config.samples)

    def until(self, stage: str) -> "Cascade":
        """Returns the cascade without the stages after `stage`. Raises ValueError naming them."""
        names = [each.name for each in self.stages]
        if stage not in names:
            raise ValueError(f"stage {stage!r}: must be one of {', '.join(names)}")
        kept = self.stages[: names.index(stage) + 1]
        return Cascade(kept, self._mesh, self.samples, self.shown)

    def with_sampler(self, settings: Sequence[str]) -> "Cascade":
        """Returns the cascade with other sampler settings; stages they leave alone are shared."""
        overrides = parse_overrides(settings, [stage.name for stage in self.stages])
        stages = []
        for stage in self.stages:
            sampler = overridden(stage.sampler, overrides[stage.name], f"sampler of {stage.name}")
            same = sampler == stage.sampler
            stages.append(stage if same else dataclasses.replace(stage, sampler=sampler))
        return Cascade(stages, self._mesh, self.samples, self.shown)

    @property
    def conditions(self) -> list[Condition]:
        """The conditions of all stages; a request names them, see conditions/requests.py."""
        return [condition for stage in self.stages for condition in stage.task.conditions]

    def draw(
        self,
        requests: Sequence[Request],
        *,
        seed: int | None = None,
        batch_size: int | None = None,
        augmentation: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns {stage: images (N, H, W, 3) in [-1, 1]} for N requests.

        A picture depends on (seed, its place in `requests`), not on batch size or devices.
        seed: in 0..2^32 - 1. augmentation: noise level in [0, 1] of the low-resolution condition,
        0 is clean. What is None is what the export's config says (`samples`).

        Raises ValueError for a seed or a level outside its range, and as `check_requests` does.
        """
        drawn: dict[str, list[np.ndarray]] = {stage.name: [] for stage in self.stages}
        batch_size = self.samples.batch_size if batch_size is None else batch_size
        parts = self.stream(requests, seed=seed, batch_size=batch_size, augmentation=augmentation)
        batches = -(-len(requests) // self.whole_batch(batch_size, len(requests)))
        for _, images in tqdm(parts, "sampling", batches, unit="batch", disable=None):
            for name, part in images.items():
                drawn[name].append(part)
        return {name: np.concatenate(parts) for name, parts in drawn.items()}

    def stream(
        self,
        requests: Sequence[Request],
        *,
        seed: int | None = None,
        batch_size: int | None = None,
        augmentation: float | None = None,
        done: Collection[int] = (),
    ) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
        """Returns an iterator over (places, {stage: images (b, H, W, 3)}): `draw`, batch by batch.

        Memory does not grow with the number of requests. A batch whose places are all in `done` is
        left out; the others are just those of an undisturbed run, to the bit.
        """
        seed = check_seed(self.samples.seed if seed is None else seed, "seed")
        batch_size = self.samples.batch_size if batch_size is None else batch_size
        augmentation = self.samples.augmentation if augmentation is None else augmentation
        self._check_augmentation(augmentation)
        check_requests(requests, self.conditions)
        batch_size = self.whole_batch(batch_size, len(requests))
        starts = range(0, len(requests), batch_size)
        batches = (range(start, min(start + batch_size, len(requests))) for start in starts)
        for start in starts:  # names words cut off, and files that cannot be read
            part = requests[start : start + batch_size]
            self.stages[0].task.collate_requests(part, warn=True)
        return (
            (places, self._draw_batch(requests, places, batch_size, seed, augmentation))
            for places in batches
            if not all(place in done for place in places)
        )

    def _check_augmentation(self, level: float) -> None:
        """Warns of a level that a stage was not trained for. Raises ValueError outside [0, 1]."""
        if not 0.0 <= level <= 1.0:
            raise ValueError(f"augmentation = {level}: must lie in [0, 1], 0 is clean")
        for stage in self.stages:
            known = stage.task.most_augmentation
            if known is not None and level > known:
                logging.warning(
                    "augmentation = %g: stage %r was trained with levels up to %g only",
                    *(level, stage.name, known),
                )

    def whole_batch(self, batch_size: int, count: int) -> int:
        """Returns a batch size, no larger than need be, that every device has an equal part of."""
        devices = self._mesh.devices.size
        return -(-min(batch_size, count) // devices) * devices

    def _draw_batch(
        self,
        requests: Sequence[Request],
        places: range,
        batch_size: int,
        seed: int,
        augmentation: float,
    ) -> dict[str, np.ndarray]:
        # The last batch is filled up so that it runs the same compiled program.
        filling = [null_request(self.conditions)] * (batch_size - len(places))
        padded = [requests[place] for place in places] + filling
        indices = places.start + np.arange(batch_size)
        drawn, images = {}, None
        for number, stage in enumerate(self.stages):
            inputs = self.inputs(number, padded, indices, seed, images, augmentation)
            images = stage.program(*inputs)
            drawn[stage.name] = filtered(distributed.to_host(images)[: len(places)], self.shown)
        return drawn

    def inputs(
        self,
        number: int,
        requests: Sequence[Request],
        indices: np.ndarray,
        seed: int,
        before: jax.Array | None,
        augmentation: float = 0.0,
    ) -> tuple[Any, ...]:
        """Returns what the program of stage `number` takes for one batch, on the devices.

        indices (b,): the pictures' places. before: the images (b, h, w, 3) of the stage before.
        """
        stage, sharding = self.stages[number], batch_sharding(self._mesh)
        batch = distributed.place(stage.task.collate_requests(requests), sharding)
        # A stage's noise is its own, by its number.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(sample_keys(seed, indices))
        made = {}
        if stage.task.of_picture:
            if before is None:
                raise CheckpointError(
                    f"stage {stage.name!r} needs the images of a stage before it, it is the first"
                )
            made = stage.task.of_before(before, augmentation, keys)
        keys, made = distributed.place((keys, made), sharding)
        return stage.params, stage.frozen, batch | made, keys


def _sampling_mesh(config: Config) -> jax.sharding.Mesh:
    """The mesh of the training, where the devices fill it: its fsdp and tensor split the weights.

    Elsewhere (one GPU, a laptop) every device is a replica.
    """
    try:
        return make_mesh(config.mesh)
    except ValueError as error:
        mesh = make_mesh(MeshConfig())
        if mesh.devices.size > 1:
            logging.warning(
                "weights are whole on each of %d devices, the training's mesh does not fit: %s",
                *(mesh.size, error),
            )
        return mesh


class Placed:
    """What lies on the devices of a sampling mesh; whatever is added is audited before.

    config: the mesh of the training.
    """

    def __init__(self, config: MeshConfig, mesh: jax.sharding.Mesh):
        self._mesh = mesh
        self._advice = "take devices with more memory"
        split = math.prod(size for size in (config.fsdp, config.tensor) if size > 0)
        if mesh.shape["data"] == mesh.size and split > 1:
            self._advice += f", or a multiple of {split} devices, which split the weights"
        self._groups: dict[str, tuple[Any, Any]] = {}
        self._frozen: dict[str, Any] = {}

    def add(self, group: str, tree: Any, boxed: Callable[[], Any]) -> Any:
        """Puts parameters on the mesh, split as in training.

        boxed: returns them with their axes. Raises ValueError where they do not fit as well.
        """
        if self._mesh.devices.size == 1:
            shardings = jax.tree.map(lambda _: replicated(self._mesh), tree)
        else:
            shardings = shardings_of(boxed(), self._mesh)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        self._groups[group] = (shapes, shardings)
        audit(self._groups, self._advice)
        return distributed.place(tree, shardings)

    def frozen(self, task: DiffusionTask, stage: str) -> dict[str, Any]:
        """Returns a task's frozen parameters on the mesh; what stages share lies there once."""
        new = {name: tree for name, tree in task.frozen.items() if name not in self._frozen}
        if new:
            group = f"frozen, of {stage} alone" if self._frozen else "frozen"
            boxed = lambda: {name: task.boxed_frozen()[name] for name in new}  # noqa: E731
            self._frozen |= self.add(group, new, boxed)
        return {name: self._frozen[name] for name in task.frozen}

    def describe(self) -> None:
        """Writes the bytes per device to the log."""
        if distributed.is_main():
            logging.info("weights:\n%s", "\n".join(report(self._groups)))


def _load_weights(folder: epath.PathLike, name: str, abstract: Any) -> Any:
    weights = load_stage(folder, name)
    check_weights(weights, abstract, f"stage {name!r} of {str(folder)!r}")
    return weights


def _check_encoders(task: DiffusionTask, name: str, trained_with: Mapping[str, str]) -> None:
    found = task.identities()
    for key, identity in trained_with.items():
        if found.get(key) != identity:
            raise CheckpointError(
                f"stage {name!r} was trained with {key} {identity}, found {found.get(key)}; "
                "give the folder of the same weights"
            )


def _for_this_machine(config: Config) -> Config:
    """Returns the config without the attention kernels chosen for the machine that trained it."""

    def chosen_here(network: Any) -> Any:
        if not hasattr(network, "attention_implementation"):
            return network
        return dataclasses.replace(network, attention_implementation="auto")

    runs = {
        name: dataclasses.replace(run, task=with_networks(run.task, chosen_here))
        for name, run in config.runs.items()
    }
    return dataclasses.replace(config, runs=runs)
