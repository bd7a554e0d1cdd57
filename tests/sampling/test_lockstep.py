"""Editing in lockstep on functions: rows, times, guidance, and what the identity edit is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.inversion import invert, observed_inversion
from contextdiff_jax.sampling.lockstep import EDIT, NULL, SOURCE, NoBlend, edit
from contextdiff_jax.sampling.loop import sample

SCHEDULE = make_schedule("cosine", 1000)
SAMPLER = SamplerConfig("ddim", 6, final_timestep=1)
TIMES = SAMPLER.timesteps(SCHEDULE)
X0 = jnp.array([[0.2, -0.5], [0.7, 0.1], [-0.3, 0.4]])  # three frames
BIASED = Process(SCHEDULE, "eps", lambda x0, times: tuple(0.2 * jnp.sin(x0) for _ in times))
PLAIN = Process(SCHEDULE, "eps", bounds=None)


def network(x, t):
    return jnp.tanh(x) * (0.5 + t[:, None] / 2000)


def alike(x, t, rows, control):
    return network(x, t), ()


def test_what_is_observed_belongs_to_the_step_of_its_time():
    def seeing(x, t, keep):
        return network(x, t), {"t": t[0], "x": x}

    path, seen = observed_inversion(BIASED, seeing, X0, TIMES)
    expected = invert(BIASED, lambda x, t, keep: network(x, t), X0, TIMES, return_path=True)
    np.testing.assert_array_equal(path, expected)
    np.testing.assert_array_equal(seen["t"], TIMES[:-1])
    np.testing.assert_array_equal(seen["x"], path[1:])


def test_an_adapter_that_is_zero_is_none_to_the_digit():
    """Operation by operation: compiled as one, two programs may round apart."""
    zero = Process(SCHEDULE, "eps", lambda x0, times: tuple(0 * x0 for _ in times), bounds=None)
    drawn = []
    with jax.disable_jit():
        for process in (zero, PLAIN):
            path, _ = observed_inversion(process, lambda x, t, keep: (network(x, t), ()), X0, TIMES)
            guided = {"scale": 3, "controls": jnp.zeros(2), "fused": 2}
            drawn.append((path, edit(process, alike, path, TIMES, **guided)))
    for biased, plain in zip(*drawn, strict=True):
        np.testing.assert_array_equal(biased, plain)


@pytest.mark.parametrize("fused", [0, 4, 6])
def test_the_identity_edit_at_guidance_1_is_the_round_trip(fused):
    path = invert(BIASED, lambda x, t, keep: network(x, t), X0, TIMES, return_path=True)
    got = edit(BIASED, alike, path, TIMES, scale=1, controls=jnp.zeros(fused), fused=fused)
    denoise = (BIASED, lambda x, t, keep: network(x, t))
    back = sample(*denoise, None, (2,), SAMPLER, x_init=path[0])
    np.testing.assert_allclose(got, back, atol=1e-6)


def test_rows_times_and_controls():
    """The source's row is the inversion's state of the next time, at this time; the control is
    told to steps with a source row alone."""
    seen = []
    path = jnp.arange(7 * 3 * 2, dtype=jnp.float32).reshape(7, 3, 2) / 40

    def predict(x, t, rows, control):
        jax.debug.callback(
            lambda *a: seen.append((rows, *a)),
            x,
            t,
            -1 if control is None else control,
            ordered=True,
        )
        return network(x, t), ()

    controls = jnp.array([5, 6, 7, 8])
    edit(PLAIN, predict, path, TIMES, scale=3, controls=controls, fused=4).block_until_ready()
    jax.effects_barrier()
    assert [call[0] for call in seen] == [(SOURCE, EDIT, NULL)] * 4 + [(EDIT, NULL)] * 2
    assert [int(call[3]) for call in seen] == [5, 6, 7, 8, -1, -1]
    assert [float(call[2][0]) for call in seen] == TIMES[:-1].tolist()
    for number, (rows, x, _, _) in enumerate(seen):
        each = np.asarray(x).reshape(3, len(rows), 2)
        np.testing.assert_array_equal(each[:, -1], each[:, -2])
        if SOURCE in rows:
            np.testing.assert_array_equal(each[:, 0], path[number + 1])


def test_guidance_leads_away_from_the_row_without_condition():
    """eps of the edit is e, without condition 0: guided it is 3 e, whatever the source's is."""
    path = jnp.stack([X0] * 7)
    signs = {SOURCE: 100.0, EDIT: 0.1, NULL: 0.0}

    def predict(x, t, rows, control):
        factors = jnp.tile(jnp.array([signs[row] for row in rows]), len(X0))
        return jnp.broadcast_to(factors[:, None], x.shape), ()

    got = edit(PLAIN, predict, path, TIMES, scale=3, controls=jnp.zeros(2), fused=2)
    expected = sample(
        *(PLAIN, lambda x, t, keep: jnp.full_like(x, 0.3), None, (2,), SAMPLER), x_init=X0
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_blend_sees_the_source_at_the_same_time():
    class Whole(NoBlend):
        def after(self, x, source, observed, number, state):
            return source, state

    path = invert(PLAIN, lambda x, t, keep: network(x, t), X0, TIMES, return_path=True)
    got = edit(PLAIN, alike, path, TIMES, scale=2, fused=3, controls=jnp.zeros(3), blend=Whole())
    np.testing.assert_array_equal(got, X0)


def test_a_path_of_other_times_is_refused():
    with pytest.raises(ValueError, match="a path of 3 states"):
        edit(PLAIN, alike, jnp.zeros((3, 2, 2)), TIMES, scale=1)
