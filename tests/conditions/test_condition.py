"""Conditions side by side: who sees what, and that each is hidden by itself."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.conditions.condition import Condition, Given, hidden
from contextdiff_jax.conditions.together import adapter_reads, attended
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.spaces.pixels import Pixels
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig


def given(rows, length, value, width=3, adapter=False):
    tokens, mask = jnp.full((rows, length, width), value), jnp.ones((rows, length), bool)
    mask = mask.at[:, -1].set(False)
    more = (tokens, mask) if adapter else ()
    return Given(jnp.ones(rows, bool), tokens, mask, *more)


def test_one_condition_is_read_as_it_is():
    one = {"a": given(2, 3, 1.0)}
    tokens, mask, keep = attended(one, {"a": jnp.array([True, False])})
    assert tokens is one["a"].tokens and mask is one["a"].mask
    assert keep.tolist() == [True, False]


def test_two_are_read_one_after_the_other_and_a_hidden_one_is_masked():
    both = {"a": given(4, 3, 1.0), "b": given(4, 2, 2.0)}
    visible = {
        "a": jnp.array([True, True, False, False]),
        "b": jnp.array([True, False, True, False]),
    }
    tokens, mask, keep = attended(both, visible)
    assert tokens[0, :, 0].tolist() == [1, 1, 1, 2, 2]
    assert mask.astype(int).tolist() == [
        [1, 1, 0, 1, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0],
    ]
    assert keep.tolist() == [True, True, True, False]  # the network's null stands for the last


def test_what_is_not_there_is_hidden_from_the_adapter_too():
    both = {"a": given(2, 2, 1.0, adapter=True), "b": given(2, 3, 2.0, adapter=True)}
    both["b"] = hidden(both["b"], jnp.array([True, False]))
    tokens, mask = adapter_reads(both)
    assert tokens.shape == (2, 5, 3)
    assert mask.astype(int).tolist() == [[1, 0, 1, 1, 0], [1, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="an adapter needs a condition with tokens"):
        adapter_reads({"a": given(2, 2, 1.0)})


def test_conditions_without_tokens_leave_the_argument_out():
    assert attended({"a": Given(jnp.ones(2, bool))}, {"a": jnp.ones(2, bool)}) is None


@dataclasses.dataclass(frozen=True)
class Flag(Condition):
    """Gives the network an input of its own: its name, and whether it is shown."""

    name: ClassVar[str] = "first"


@dataclasses.dataclass(frozen=True)
class Other(Flag):
    name: ClassVar[str] = "second"


@dataclasses.dataclass(frozen=True)
class Always(Flag):
    name: ClassVar[str] = "third"
    droppable: ClassVar[bool] = False


def make(conditions, **config):
    return DiffusionTask(
        DiffusionConfig(**config),
        make_schedule("cosine", 20),
        Pixels(8),
        conditions,
        denoiser=None,
        adapter=None,
        image_encoder=None,
        sampler=SamplerConfig(),
    )


def test_without_a_condition_of_pictures_a_batch_needs_none():
    """As in a preview, which is drawn for prompts."""
    assert make((Flag(), Other())).of_target({"tokens": jnp.ones((2, 3))}) == {}


def test_each_is_hidden_by_itself_and_as_often_as_asked():
    task = make((Flag(), Other(), Always()), drop_condition=0.3, drop_both=0.2)
    draw = jax.jit(lambda key: task._drop(key, 4000))
    shown, keep = draw(jax.random.key(0))
    assert set(shown) == set(keep) == {"first", "second"}
    for found, share in ((keep, 0.7), (shown, 0.8)):
        seen = np.stack([found["first"], found["second"]]).astype(float)
        np.testing.assert_allclose(seen.mean(axis=1), share, atol=0.04)
        assert abs(np.corrcoef(seen)[0, 1]) < 0.06
    # Alone it is hidden where it is beside others: adding a condition changes no other.
    _, alone = make((Flag(),), drop_condition=0.3)._drop(jax.random.key(0), 4000)
    np.testing.assert_array_equal(alone["first"], keep["first"])


def test_guidance_hides_what_training_does_and_no_more():
    class Denoiser:
        def apply(self, params, x, t, text, text_mask, keep):
            assert keep.all()  # what is never hidden is left to attend to
            shown.append(text_mask.tolist())
            return x

    shown, rows = [], 4
    task = dataclasses.replace(make((Flag(), Always())), denoiser=Denoiser())
    both = {"first": given(2, 2, 1.0), "third": given(2, 3, 2.0)}
    _, denoise = task._functions({"denoiser": {}}, {}, both)
    keep = jnp.arange(rows) % 2 == 0
    denoise(jnp.zeros((rows, 8, 8, 3)), jnp.ones(rows), keep)
    kept, dropped = [True, False, True, True, False], [False, False, True, True, False]
    assert shown == [[kept, dropped, kept, dropped]]


def test_arrays_of_two_conditions_must_have_different_names():
    class Clash(Flag):
        def collate(self, values, warn=False):
            return {"ids": np.zeros(len(values))}

    with pytest.raises(ValueError, match="two conditions have ids: names must differ"):
        make((Clash(), Clash())).collate(["a"])
