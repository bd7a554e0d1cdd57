"""Which settings lower the memory of what is compiled, given those it has."""

from collections.abc import Mapping

from contextdiff_jax.config import Config, RunConfig


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
    """What more recomputation the run's network has; a contrastive run's has none."""
    networks = {"unet": run.unet, "efficient_unet": run.efficient_unet}
    ways = []
    for section, network in networks.items():
        if network is not None and network.remat != "blocks":
            ways.append(f"{section}.remat = 'blocks' (now {network.remat!r})")
        elif network is not None and network.remat_levels:
            ways.append(f"{section}.remat_levels = 0, all (now {network.remat_levels})")
    return ways
