"""Shapes of what the process works on, as signatures name them.

They are for readers, and all tests check them: tests/fixtures/checked_shapes.py.
"""

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

Array = jax.Array | np.ndarray  # what is not traced may be NumPy's

Data = Float[Array, "batch *data"]  # x0, x_t, noise, a prediction: (B, ...)
Bias = Float[ArrayLike, "..."]  # broadcasts to data, as the checked result shows; 0.0 for none
Values = Float[ArrayLike, "*values"]  # alike, of any shape
PerExample = Float[Array, "batch"]
Time = Int[ArrayLike, ""] | Int[ArrayLike, "batch"]  # one for all, or one per example
Told = Shaped[ArrayLike, ""] | Shaped[ArrayLike, "batch"]  # a Time, or one between two of them
Factor = Float[Array, ""] | Float[Array, "batch *#data"]  # of a Time, as data takes it

Times = Shaped[ArrayLike, "*#times"]  # of any shape
At = Float[Array, "*#times"]  # what a schedule has there
