"""The comparison of kernels, with their emulations on a CPU."""

import json

import jax.numpy as jnp
import pytest

from benchmarks import fused_attention


@pytest.mark.parametrize("name", sorted(fused_attention.EMULATED))
def test_the_emulated_kernels_pass(name, tmp_path, capsys):
    path = tmp_path / "found.json"
    results = fused_attention.main([f"--emulate={name}", f"--json={path}"])
    assert [result["passed"] for result in results] == [True, True]
    assert json.loads(path.read_text()) == {"kernel": name, "cases": results}
    assert capsys.readouterr().out.count(": passes: output ") == 2


def of_the_mean(query, key, value, mask):
    """Not attention, but of its shapes."""
    return jnp.broadcast_to(value.mean(1, keepdims=True), query.shape)


def unmasked(query, key, value, mask):
    return fused_attention.EMULATED["cudnn"](query, key, value, None)


@pytest.mark.parametrize("wrong", [of_the_mean, unmasked])
def test_what_is_not_equal_does_not_pass(wrong, capsys):
    found = fused_attention.check(fused_attention.TOY[0], wrong)
    assert not found["passed"]
    printed = capsys.readouterr().out
    assert "DOES NOT PASS" in printed and "rows without keys are not zero" in printed


def test_a_platform_without_kernels_is_named():
    with pytest.raises(ValueError, match="cpu has no fused attention: --emulate=cudnn or flash"):
        fused_attention.main([])
