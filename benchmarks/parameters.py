"""Random parameters without compiling a network's initialization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random_arrays(f: Callable, *args: Any) -> Any:
    """Returns normal noise of the shapes of f(*args), e.g. of a module's init.

    Unlike that of init, no kernel is zero, which would be an unusual load.
    """
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.05 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(f, *args))
