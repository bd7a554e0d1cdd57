"""Low-rank updates of attention (LoRA, Hu et al. 2021): W + scale * down @ up, of a tree.

The network itself is as it is: an updated tree is applied in the place of its own. So whatever has
attention sites can be trained this way, and a zero update changes nothing to the last digit.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from contextdiff_jax.networks import axes
from contextdiff_jax.system.limits import most

Path = tuple[str, ...]

_SITES = ("self", "cross")
_PROJECTIONS = ("query", "key", "value", "out")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates of the projections of all attention sites.

    rank: of each update. alpha: the update counts alpha / rank.
    """

    rank: int = dataclasses.field(default=8, metadata=most(1024))
    alpha: float = dataclasses.field(default=8.0, metadata=most(10**6))

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if self.rank < 1:
            raise ValueError(f"{where}.rank = {self.rank}: must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"{where}.alpha = {self.alpha}: must be above 0")


def updated_paths(weights: Any) -> list[Path]:
    """Returns the modules below which a kernel is updated: the projections of attention sites."""
    paths = (path[:-1] for path in traverse_util.flatten_dict(nn.unbox(weights)))
    found = {path for path in paths if path[-2:-1] and path[-2] in _SITES}
    return sorted(path for path in found if path[-1] in _PROJECTIONS)


def init_lora(config: LoRAConfig, weights: Any, key: jax.Array) -> Any:
    """Returns the updates of a network's weights (boxed, or shapes), boxed with their axis names.

    At each projection {"down": (..., in, rank), "up": (..., rank, out)} float32, with the leading
    axes of the kernel. down is drawn with variance 1 / in, up is zero: at first nothing changes.
    """
    flat = traverse_util.flatten_dict(weights)
    updates: dict[Path, Any] = {}
    for number, path in enumerate(updated_paths(weights)):
        kernel = flat[(*path, "kernel")]
        *leading, wide, out = kernel.unbox().shape
        *names, entered, left = kernel.names
        drawn = jax.random.normal(jax.random.fold_in(key, number), (*leading, wide, config.rank))
        update = {
            "down": (drawn * wide**-0.5, (*names, entered, axes.RANK)),
            "up": (jnp.zeros((*leading, config.rank, out)), (*names, axes.RANK, left)),
        }
        updates[path] = {k: nn.LogicallyPartitioned(*boxed) for k, boxed in update.items()}
    return traverse_util.unflatten_dict(updates)


def with_lora(weights: Any, updates: Any, scale: float) -> Any:
    """Returns the weights (unboxed) with their updates; both are trees of float32 arrays."""
    flat, factors = map(traverse_util.flatten_dict, (weights, updates))
    for path in (path[:-1] for path in factors if path[-1] == "down"):
        product = factors[(*path, "down")] @ factors[(*path, "up")]
        flat[(*path, "kernel")] = flat[(*path, "kernel")] + scale * product
    return traverse_util.unflatten_dict(flat)
