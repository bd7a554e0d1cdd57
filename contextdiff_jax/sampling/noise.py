"""Per-sample noise: a picture depends on its own key, not on its batch or the devices."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Integer, Key

from contextdiff_jax.diffusion.shapes import Array
from contextdiff_jax.system.seeds import check_seed


def sample_keys(seed: int, indices: Integer[ArrayLike, "batch"]) -> Key[Array, "batch"]:
    """Returns one key per picture, (B,): fold_in(key(seed), index).

    seed: in 0..2^32 - 1. indices: integers (B,) in 0..2^32 - 1, the pictures' numbers over the
    whole run. Stages of a cascade need different seeds, or their noise would be related.

    Raises ValueError for a seed outside its range.
    """
    # Threefry, whatever the default: under vmap other generators depend on the batch.
    key = jax.random.key(check_seed(seed, "seed"), impl="threefry2x32")
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.asarray(indices))


def step_noise(
    keys: Key[Array, "batch"], step: int | jax.Array, shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """Returns N(0, I) noise, float32 (B, *shape), of one sampling step; step 0 is x_T.

    keys: (B,) from `sample_keys`. step: integer (), the same for all. shape: of one sample.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)
