"""Attention over three frames, against NumPy; the adapter of clips."""

import jax
import numpy as np
import pytest
from scipy import special

from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.causal_frames import CausalFrames
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.training.parameter_names import by_name, nested
from tests.fixtures.parameters import initial

FRAMES, ROWS, TOKENS, WIDTH, HEADS = 5, 2, 4, 8, 2
RNG = np.random.default_rng(4)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = normal(FRAMES * ROWS, TOKENS, WIDTH)


def randomized(tree):
    return nested({name: normal(*leaf.shape) * 0.5 for name, leaf in by_name(tree).items()})


def explicit(params, x):
    """A frame after the other, of frames i - 2 to i that there are."""
    x = x.reshape(FRAMES, ROWS, TOKENS, WIDTH).astype(np.float64)
    norm, layers = params["norm"], params["attention"]
    h = x - x.mean(-1, keepdims=True)
    h /= np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5)
    h = h * norm["scale"] + norm["bias"]
    out = np.empty_like(x)
    for frame, row in np.ndindex(FRAMES, ROWS):
        seen = h[max(frame - 2, 0) : frame + 1, row].reshape(-1, WIDTH)
        query = h[frame, row] @ layers["query"]["kernel"]
        key, value = (seen @ layers[name]["kernel"] for name in ("key", "value"))
        split = (part.reshape(len(part), HEADS, -1) for part in (query, key, value))
        q, k, v = split
        weights = special.softmax(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(WIDTH / HEADS), axis=-1)
        attended = np.einsum("hqk,khd->qhd", weights, v).reshape(TOKENS, WIDTH)
        out[frame, row] = attended @ layers["out"]["kernel"] + layers["out"]["bias"]
    return out.reshape(FRAMES * ROWS, TOKENS, WIDTH)


def test_it_is_attention_to_the_frames_that_there_are():
    module = CausalFrames(HEADS, FRAMES)
    apply = jax.jit(module.apply)
    fresh = initial(lambda key: module.init(key, X))["params"]
    assert not np.any(apply({"params": fresh}, X))  # it begins as zero
    params = randomized(fresh)
    np.testing.assert_allclose(apply({"params": params}, X), explicit(params, X), atol=1e-4)


@pytest.fixture(scope="module")
def adapters():
    """The adapter of pictures with its parameters, that of clips with its own, and inputs."""
    config = AdapterConfig(
        *(4, 4, WIDTH, 1, HEADS),
        mlp_ratio=2,
        time_width=8,
        image_dim=6,
        text_dim=5,
        attention_implementation="xla",
    )
    inputs = (normal(FRAMES, 8, 8, 4), np.full(FRAMES, 7.0, np.float32))
    inputs += (normal(FRAMES, 5, 6), np.repeat(normal(1, 3, 5), FRAMES, axis=0))
    pictures, clips = Adapter(config), Adapter(config, frames=FRAMES)
    params = randomized(initial(lambda key: pictures.init(key, *inputs))["params"])
    return pictures, params, clips, inputs


def test_an_adapter_of_pictures_loads_unchanged_and_sees_no_other_frame(adapters):
    pictures, params, clips, inputs = adapters
    fresh = by_name(initial(lambda key: clips.init(key, *inputs), seed=1)["params"])
    own = by_name(params)
    new = set(fresh) - set(own)
    assert set(own) <= set(fresh) and all(name.startswith("block_0/frames/") for name in new)
    whole = nested(fresh | own)
    got = clips.apply({"params": whole}, *inputs)
    np.testing.assert_array_equal(got, pictures.apply({"params": params}, *inputs))
    tuned = nested({n: own.get(n, normal(*leaf.shape)) for n, leaf in fresh.items()})
    before = np.asarray(clips.apply({"params": tuned}, *inputs))
    changed = inputs[0].copy()
    changed[1] += 1
    after = np.asarray(clips.apply({"params": tuned}, changed, *inputs[1:]))
    moved = np.abs(after - before).max(axis=(1, 2, 3)) > 1e-6
    assert moved.tolist() == [False, True, True, True, False]  # itself and the two after it
