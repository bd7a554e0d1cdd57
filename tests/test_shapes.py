"""Shapes that signatures name are checked in every test: a wrong one ends here."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from contextdiff_jax.conditions.image_normalization import normalized
from contextdiff_jax.conditions.low_resolution import augment, downsample
from contextdiff_jax.conditions.picture_files import is_there
from contextdiff_jax.conditions.segmentation import places_of
from contextdiff_jax.diffusion import bound, marginals, predictions, relations, steps
from contextdiff_jax.diffusion.marginals import Biased
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.guidance import dynamic_threshold, threshold_x0
from contextdiff_jax.sampling.noise import sample_keys, step_noise
from contextdiff_jax.spaces import pictures, pil_resizing, pixels
from tests.fixtures.checked_shapes import PACKAGES, names_shapes

SCHEDULE = make_schedule("cosine", 10)
X = np.zeros((2, 4, 4, 3), np.float32)
OTHER = np.zeros((2, 4, 5, 3), np.float32)
T, TS, THREE = np.array(3), np.array([3, 4]), np.array([3, 4, 5])
KEYS = sample_keys(0, np.arange(2))
PROCESS = Process(SCHEDULE, "x0")
BIASED = Biased(X, 0.0, 0.0)

# A function, arguments that it takes, and the place and value of one that it must not take.
CALLS = {
    "diffuse, noise": (marginals.diffuse, (SCHEDULE, X, 0.0, TS, X), 4, OTHER),
    "diffuse, times": (marginals.diffuse, (SCHEDULE, X, X[:1], T, X), 3, THREE),
    "diffuse, float time": (marginals.diffuse, (SCHEDULE, X, X, T, X), 3, jnp.float32(3)),
    "posterior": (
        marginals.posterior,
        (SCHEDULE, X, Biased(X, 0.0, 0.0), TS, TS - 1),
        1,
        X[0, 0, 0, 0],
    ),
    "to_x0": (predictions.to_x0, ("eps", SCHEDULE, X, X, TS), 2, OTHER),
    "step": (steps.noise_estimate, (SCHEDULE, X, X, 0.0, T), 2, X[:1]),
    "prior_kl": (bound.prior_kl, (SCHEDULE, X, 0.0), 1, X.astype(np.int32)),
    "to_modes": (relations.to_modes, (X,), 0, X[0, 0]),
    "Process.diffuse": (PROCESS.diffuse, (X, 0.0, TS, X), 3, X[..., :1]),
    "dynamic_threshold": (dynamic_threshold, (X, 99.0), 0, X.astype(np.uint8)),
    "threshold_x0": (threshold_x0, (PROCESS, X, T, SamplerConfig("ddim")), 2, THREE),
    "step_noise": (step_noise, (KEYS, 0, (3,)), 0, KEYS[0]),
    "sample_keys": (sample_keys, (0, TS), 1, X),
    "from_uint8": (pixels.Pixels(4).encode, (X.astype(np.uint8),), 0, X[0].astype(np.uint8)),
    "grid": (pictures.grid, (X,), 0, X[0]),
    "resize_height": (pil_resizing.resize_height, (X, np.ones((2, 4), np.float32)), 1, OTHER[0, 0]),
    "downsample": (downsample, (X, 2), 0, X[0]),
    "augment": (augment, (SCHEDULE, X, jnp.ones(2), X), 2, jnp.ones(3)),
    "is_there": (is_there, (np.zeros((2, 4, 4, 3, 4)),), 0, X),
    "normalized": (normalized, (jnp.asarray(X),), 0, X[0, 0]),
    "places_of": (places_of, (np.array([[3]]), "key", [1, 3]), 0, np.array([3.0])),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_shape_fails(name):
    function, arguments, place, wrong = CALLS[name]
    function(*arguments)
    with pytest.raises(TypeCheckError, match="typechecking parameter"):
        function(*arguments[:place], wrong, *arguments[place + 1 :])


def test_traced_arrays_are_checked():
    traced = jax.jit(lambda noise: marginals.diffuse(SCHEDULE, X, 0.0, T, noise))
    traced(X)
    with pytest.raises(TypeCheckError, match="parameter 'noise'"):
        traced(OTHER)


def test_results_are_checked():
    process = Process(SCHEDULE, "x0", bounds=None)
    with pytest.raises(TypeCheckError, match="return value"):
        process.changed(X, T, lambda x0: x0[:, :1])
    with pytest.raises(TypeCheckError, match="return value"):
        marginals.diffuse(SCHEDULE, X, X[None], T, X)  # a bias that does not broadcast to x0


def test_every_room_names_shapes():
    """So that the hook has something to check in each: the number of functions that do."""
    found = dict.fromkeys(PACKAGES, 0)
    for package in PACKAGES:
        for module in pkgutil.iter_modules(
            importlib.import_module(package).__path__, package + "."
        ):
            of = importlib.import_module(module.name)
            for _, function in inspect.getmembers(of, inspect.isfunction):
                hints = inspect.signature(function).parameters.values()
                ours = function.__module__ == module.name
                found[package] += ours and any(names_shapes(hint.annotation) for hint in hints)
    assert all(count >= 5 for count in found.values()), found
