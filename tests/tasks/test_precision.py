"""bfloat16: what computes in it and what never does, read off the traced training step."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from contextdiff_jax.compilation.model_flops import equations
from contextdiff_jax.training.optimizer import OptimizerConfig, make_optimizer
from contextdiff_jax.training.state import new_state
from contextdiff_jax.training.step import make_train_step
from tests.fixtures.tiny_tasks import build_loaded

PRODUCTS = {"dot_general", "conv_general_dilated"}
# Softmax, norms, sinusoids, the relation's bound, Adam.
SENSITIVE = {"exp", "log", "rsqrt", "sqrt", "cos", "sin", "tanh", "div"}
# The derivative of the adapter's activation, GELU.
GELU = r"Adapter\)+/block_\d+$"
# Products that stay float32: time and noise-level MLPs, the adapter's modulation (its time path)
# and last layer, the head, and what resizes images.
FLOAT32 = r"\b(time|aug_level|modulation|head|_resize|pil_resizing)\b|Adapter\)+/out\b"


def floats(variables):
    """Returns the dtypes of those that are floating point."""
    dtypes = {getattr(variable.aval, "dtype", None) for variable in variables} - {None}
    return {str(d) for d in dtypes if jnp.issubdtype(d, jnp.floating)}


@pytest.fixture(scope="module", params=["base", "sr"])
def traced(request, make_config, make_batch):
    """Returns the state's shapes, the traced step, and the shapes of its results."""
    config = dataclasses.replace(make_config(), dtype="bfloat16")
    task = build_loaded(config, request.param)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    step = make_train_step(task, optimizer, seed=0, ema_decay=0.99)
    state = jax.eval_shape(lambda key: new_state(task, optimizer, key), jax.random.key(0))
    jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(state, task.frozen, make_batch(task))
    return state, jaxpr, shapes


def test_state_and_metrics_are_float32(traced):
    state, _, (after, metrics) = traced
    for tree in (state, after, metrics):
        for path, leaf in jax.tree.leaves_with_path(tree):
            assert leaf.dtype in (jnp.float32, jnp.int32), jax.tree_util.keystr(path)
    assert metrics["loss"].dtype == jnp.float32


def test_products_are_bfloat16(traced):
    found = [
        (scope, floats(equation.invars))
        for equation, scope, _ in equations(traced[1].jaxpr)
        if equation.primitive.name in PRODUCTS and floats(equation.invars)
    ]
    for scope, dtypes in found:
        expected = {"float32"} if re.search(FLOAT32, scope) else {"bfloat16"}
        assert dtypes == expected, scope


def test_sensitive_functions_are_float32(traced):
    seen = set()
    for equation, scope, _ in equations(traced[1].jaxpr):
        sensitive = equation.primitive.name in SENSITIVE and not re.search(GELU, scope)
        if sensitive and floats(equation.invars):
            seen.add(equation.primitive.name)
            assert floats(equation.invars) == {"float32"}, f"{equation.primitive.name} in {scope}"
    assert seen >= {"exp", "rsqrt", "cos", "sin", "tanh", "sqrt"}


def test_statistics_of_norms_are_float32(traced):
    sums = [
        floats(equation.invars)
        for equation, scope, _ in equations(traced[1].jaxpr)
        if equation.primitive.name == "reduce_sum" and re.search("(?i)norm", scope)
    ]
    assert len(sums) > 20 and set().union(*sums) == {"float32"}


def test_outside_the_networks_everything_is_float32(traced):
    for equation, scope, _ in equations(traced[1].jaxpr):
        if not re.search(r"UNet|Adapter|CLIP|TextTower", scope):
            assert floats(equation.outvars) <= {"float32"}, f"{equation.primitive.name} in {scope}"
