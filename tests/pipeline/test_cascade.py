"""The cascade; whole ones are drawn from in tests/integration."""

import dataclasses

from configs import quickstart
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.pipeline.cascade import _for_this_machine


def test_kernels_of_the_machine_that_trained_are_not_asked_of_another():
    run = from_config_dict(quickstart.get_config()).runs["base"]
    trained = dataclasses.replace(
        run,
        unet=dataclasses.replace(run.unet, attention_implementation="flash"),
        adapter=dataclasses.replace(run.adapter, attention_implementation="flash"),
    )
    assert _for_this_machine(trained) == run
