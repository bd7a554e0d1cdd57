"""The tagged union `RunConfig.task`: its base, its members by tag, and what a task is built from.

A member is a frozen dataclass that derives from TaskConfig, has the field
`kind: Literal[TAG] = TAG` and is decorated with `@register`. Every file of this folder is imported
when a tag is looked up, so a new one needs no entry anywhere. A package of somebody else's names
the modules of its tasks as entry points of the group "contextdiff_jax.tasks".
"""

import dataclasses
import functools
import importlib
import pathlib
import pkgutil
import typing
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

import jax.numpy as jnp
from etils import epath

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import Source
from contextdiff_jax.encoders.config import CLIPConfig
from contextdiff_jax.encoders.frozen import FrozenStage, ImageEncoder, StoredTokens, TextEncoder
from contextdiff_jax.training.task import Params, Task


@typing.runtime_checkable
class NetworkConfig(Protocol):
    """The section of a network. Kernels and recomputation are set where it has fields for them."""

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value cannot work."""

    def check_resolution(self, resolution: int, where: str) -> None:
        """Raises ValueError, `where` the key, unless pictures of this side fit."""


class Encoders(Protocol):
    """The encoders that the config names: loaded, or their shapes alone. What is the same is one.

    With stored tokens no text encoder is loaded.
    """

    def text(self) -> TextEncoder | StoredTokens:
        """Returns what encodes text for denoisers."""

    def clip_text(self) -> TextEncoder | StoredTokens:
        """Returns what encodes text for adapters."""

    def clip_image(self) -> ImageEncoder:
        """Returns what encodes pictures for adapters."""

    def first_stage(self, path: str) -> FrozenStage:
        """Returns the first stage of a folder."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a task is built from, beside its own section.

    data: of the run. dtype: compute dtype. use_adapter: the config's. where: the run's key, for
    messages. seed: of training.
    source, folder: the run's opened data and its folder; None where only shapes are asked for.
    """

    data: DataConfig
    dtype: jnp.dtype
    use_adapter: bool
    encoders: Encoders
    where: str = "config.runs.RUN"
    seed: int = 0
    source: Source | None = None
    folder: epath.Path | None = None


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What a run optimises. The defaults are those of a task that draws nothing.

    draws: whether its runs are stages of the pipeline's cascade; it builds a DiffusionTask then.
    reads_text: whether `data.embeddings` may stand for its text encoders.
    in_latents: whether `data.latents` may stand for pictures; it then has `first_stage`.
    pipeline: the class of diffusers that draws as its runs do; None where there is none.
    conditions: of its pictures: each the condition itself, or its type where the config alone does
        not make it. None: they are known only once the task is built.
    scenes_measure: what evaluate.py measures of it, where it is trained on rendered scenes.
    copies: beginnings of parameters' names, {of a copy: of what it is a copy of}. Where a run
        starts from others' weights and the copy begins anew, it begins with theirs.
    """

    draws: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    in_latents: ClassVar[bool] = False
    pipeline: ClassVar[str | None] = None
    conditions: ClassVar[tuple[Condition | type[Condition], ...] | None] = None
    scenes_measure: ClassVar[str] = "scenes"
    copies: ClassVar[Mapping[str, str]] = MappingProxyType({})

    # -- before it is built -------------------------------------------------------------------

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in order, where a class is all that a picture is asked for by; else ()."""
        return ()

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""

    def networks(self) -> dict[str, NetworkConfig]:
        """Returns the sections of networks, by their fields; not those left out (None)."""
        return {}

    def encoders(self, use_adapter: bool) -> tuple[str, ...]:
        """Returns which of `config.encoders` it reads: of "text" and "clip"."""
        return ()

    def folders(self) -> tuple[str, ...]:
        """Returns the folders of frozen weights that it reads beside those encoders."""
        return ()

    def check_folders(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError for what of `folders` does not fit; reads what is small of them."""

    def usable(self, source: Source) -> Source:
        """Returns the source with what the task cannot use as damaged samples."""
        return source

    @property
    def enlarges(self) -> tuple[str, int] | None:
        """The field with the side of the pictures that it enlarges, and that side; None if none."""
        return None

    @property
    def encoder_config(self) -> CLIPConfig | None:
        """The sizes of the encoder that its runs train, None where they train none."""
        return None

    @property
    def fits_data(self) -> bool:
        """Whether what it fits to the data lies beside the weights, to stay as it is."""
        return False

    @property
    def preview_every(self) -> int:
        """Steps between sample grids, 0 for none."""
        return 0

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """What the sample grids show; () for the first data."""
        return ()

    @property
    def diagnosed_every(self) -> int:
        """Steps between the costlier diagnostics, 0 for none."""
        return 0

    def build(self, parts: Parts) -> Task:
        """Returns the task. Raises ValueError for parts that do not fit."""
        raise NotImplementedError

    # -- when its run ends: all three, or none ------------------------------------------------

    def finish(self, task: Task, weights: Params, folder: epath.Path) -> None:
        """Writes what other runs read of it to the run's folder; weights: EMA, on the host."""

    def is_finished(self, folder: epath.Path) -> bool:
        """Whether all that `finish` writes is there."""
        return True

    def go_on(self, folder: epath.Path) -> None:
        """Makes `is_finished` False: the run has more steps than when `finish` wrote."""


GROUP = "contextdiff_jax.tasks"

Member = TypeVar("Member", bound=type[TaskConfig])

_REGISTERED: dict[str, type[TaskConfig]] = {}


def register(config: Member) -> Member:
    """Decorates a member of the union. Raises ValueError where its tag is another one's."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    kind = fields["kind"].default
    known = _REGISTERED.get(kind, config)
    if known.__qualname__ != config.__qualname__ or known.__module__ != config.__module__:
        raise ValueError(f"task kind {kind!r} is {known.__module__}.{known.__qualname__} already")
    _REGISTERED[kind] = config
    return config


def registered() -> Mapping[str, type[TaskConfig]]:
    """Returns the members of the union by their tags.

    Raises ValueError naming the module of another package that cannot be imported.
    """
    _import_all()
    return dict(sorted(_REGISTERED.items()))


@functools.cache
def _import_all() -> None:
    """Imports every module that registers tasks, once."""
    for module in pkgutil.iter_modules([str(pathlib.Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    for plugin in metadata.entry_points(group=GROUP):
        try:
            plugin.load()
        except Exception as error:  # whatever another package raises
            raise ValueError(
                f"the tasks of another package, {plugin.value!r}, cannot be imported: {error!r}; "
                "repair or uninstall it"
            ) from error


def with_networks(config: TaskConfig, change: Any) -> Any:
    """Returns the section with `change(network)` in the place of each of its networks."""
    changed = {name: change(network) for name, network in config.networks().items()}
    return dataclasses.replace(config, **changed)
