"""Random parameters without compiling a network's initialization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random_arrays(f: Callable, *args: Any) -> Any:
    """Returns normal noise of the shapes of f(*args), e.g. of a module's init."""
    return random_like(jax.eval_shape(f, *args))


def random_like(shapes: Any) -> Any:
    """Returns normal noise of these shapes. Unlike after init, no kernel is zero."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.05 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)
