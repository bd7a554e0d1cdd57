"""Memory of devices that does not suffice: which settings lower what a run needs of it."""

import contextlib
from collections.abc import Iterator, Mapping

import jax

from contextdiff_jax.config import Config, RunConfig
from contextdiff_jax.parallel.device_errors import out_of_memory


@contextlib.contextmanager
def explained(config: Config, name: str, mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Turns what JAX raises in training run `name` for want of memory into one sentence.

    Raises ValueError, because the same command would end likewise, with the knobs left to turn.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        sentence = out_of_memory(error)
        if sentence is None:
            raise
        turn = knobs(config, name, "train", mesh.shape, config.runs[name].batch_size)
        raise ValueError(
            f"run {name}: {sentence} {turn['temporaries']} {turn['arguments']} "
            "contextdiff_jax.compile says beforehand what a step needs."
        ) from error


def knobs(
    config: Config, name: str, what: str, mesh: Mapping[str, int], batch_size: int, slices: int = 1
) -> dict[str, str]:
    """Returns a sentence each on "arguments" and "temporaries": the knobs left to turn.

    what: "train" or "sample". mesh: sizes by axis.
    """
    run, training = config.runs[name], what == "train"
    held = "parameters, moments and EMA" if training else "parameters"
    most = mesh["data"] * mesh["fsdp"] // slices
    if mesh["fsdp"] < most:
        split = f"A larger mesh.fsdp (now {mesh['fsdp']}, at most {most}) splits {held} further"
    else:
        split = f"Only a slice of more chips, with a larger mesh.fsdp, splits {held} further"
    accumulation = run.optimizer.accumulation if training else 1
    fewer = []
    if batch_size > mesh["data"] * mesh["fsdp"] * accumulation:
        fewer.append(f"a smaller batch_size (now {batch_size})")
        if training:
            fewer.append(f"a larger optimizer.accumulation (now {accumulation})")
    if training:
        fewer += _remat(run)
    # With one picture a chip the batch is the least there is.
    ways = " or ".join(fewer) or "only chips with more memory, or a mesh.tensor that splits heads,"
    return {
        "arguments": f"{split}.",
        "temporaries": f"Of temporaries, {ways} leaves fewer.",
    }


def _remat(run: RunConfig) -> list[str]:
    """What more recomputation the run's networks have."""
    ways = []
    for section, network in run.task.networks().items():
        if not hasattr(network, "remat"):
            continue
        if network.remat != "blocks":
            ways.append(f"task.{section}.remat = 'blocks' (now {network.remat!r})")
        elif network.remat_levels:
            ways.append(f"task.{section}.remat_levels = 0, all (now {network.remat_levels})")
    return ways
