"""A device's memory that does not suffice, as JAX itself raises it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from absl import app

from configs import quickstart
from contextdiff_jax import entry
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.parallel.device_errors import out_of_memory
from contextdiff_jax.runs.train import train_run
from contextdiff_jax.training.loop import Trainer


def exhaust(*args):
    jax.block_until_ready(jax.jit(lambda: jnp.zeros(2**46))())


def test_only_want_of_memory_has_the_sentence():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        exhaust()
    sentence = out_of_memory(caught.value)
    assert sentence.startswith("the memory of a device does not suffice: RESOURCE_EXHAUSTED: ")
    assert sentence.endswith(f"{2**48} bytes.")
    assert out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: else")) is None
    assert out_of_memory(MemoryError("RESOURCE_EXHAUSTED")) is None


@pytest.mark.parametrize("method", ["__init__", "train"])
def test_a_run_says_which_knobs_are_left(method, monkeypatch, tmp_path):
    config = from_config_dict(quickstart.get_config("test"))
    run = dataclasses.replace(config.runs["clip"], batch_size=16)
    config = dataclasses.replace(config, runs=dict(config.runs) | {"clip": run})
    monkeypatch.setattr(Trainer, method, exhaust)
    sentence = (
        r"^run clip: the memory of a device .* bytes\. Of temporaries, a smaller batch_size "
        r"\(now 16\) or a larger optimizer.accumulation \(now 1\) leaves fewer\. A larger mesh.fsdp"
    )
    with pytest.raises(ValueError, match=sentence):
        train_run(config, "clip", tmp_path)


def test_other_errors_of_a_run_stay(monkeypatch, tmp_path):
    def fail(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: else")

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: else"):
        train_run(from_config_dict(quickstart.get_config("test")), "clip", tmp_path)


def test_every_command_ends_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(app, "run", lambda main, **_: main([""]))
    monkeypatch.setattr(entry, "keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit) as end:
        entry.run(exhaust)
    assert end.value.code == entry.EXIT_REFUSED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("contextdiff_jax: the memory of a device does not suffice: RESOURCE_EX")
    assert last.endswith("A smaller batch needs less of it.")
