"""What the compiler is told: convolutions on CPUs by Eigen, nothing elsewhere or where unknown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from contextdiff_jax.parallel import programs
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh

OPTION = "xla_cpu_experimental_ynn_fusion_type"


@pytest.fixture
def asked_anew():
    programs.compiler_options.cache_clear()
    yield
    programs.compiler_options.cache_clear()


def convolve(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def compiled(program, *inputs):
    return program.lower(*inputs).compile().as_text()


def test_convolutions_are_eigens_on_a_cpu():
    known = programs.compiler_options("cpu")
    if known is None:
        pytest.skip("this XLA has no such option")
    assert set(known) == {OPTION} and known[OPTION].endswith("DOT,LIBRARY_FUSION_TYPE_REDUCE")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    # Small ones are Eigen's anyway.
    inputs = jnp.ones((8, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
    if "ynn" not in compiled(jax.jit(convolve), *inputs):
        pytest.skip("this XLA does not give convolutions to YNNPACK")
    program = programs.jit_on_mesh(convolve, mesh)
    text = compiled(program, *inputs)
    assert "ynn" not in text and "convolution" in text
    np.testing.assert_allclose(program(*inputs), convolve(*inputs), rtol=1e-5)


def test_what_runs_once_is_compiled_sooner_and_computes_the_same(monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    draw = lambda key: jax.random.normal(key, (64, 64))  # noqa: E731
    key, known = jax.random.key(0), jax.jit
    found = programs.jit_on_mesh(draw, mesh, runs_once=True)(key)
    np.testing.assert_allclose(found, known(draw)(key), atol=1e-6)
    told = []
    monkeypatch.setattr(
        programs.jax, "jit", lambda f, compiler_options: told.append(compiler_options)
    )
    programs.jit_on_mesh(draw, mesh, runs_once=True)
    programs.jit_on_mesh(draw, mesh)
    level = "xla_backend_optimization_level"
    assert told[0][level] == 0 and level not in (told[1] or {})


def test_other_platforms_are_told_nothing():
    assert programs.compiler_options("tpu") is None and programs.compiler_options("gpu") is None


def test_an_xla_without_the_option_goes_on_without_it(asked_anew, monkeypatch):
    known = jax.jit

    def jit(function, compiler_options=None, **options):
        unknown = {"xla_cpu_of_another_release": "1"} if compiler_options else None
        return known(function, compiler_options=unknown, **options)

    monkeypatch.setattr(programs.jax, "jit", jit)
    assert programs.compiler_options("cpu") is None
