"""Loading Inception v3's weights from safetensors, by torch's names or the TensorFlow graph's.

torch's are those of pt_inception-2015-12-05-6726825d.pth (pytorch-fid) and of torch-fidelity's
file: convolutions and batch norms apart. The graph's have the batch norms folded in: conv_1.kernel
(HWIO), conv_1.bias, mixed_4_tower_1_conv_2.kernel and so on, up to mixed_7 (768 features).
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from contextdiff_jax.encoders.inception import (
    FEATURES,
    IMAGE_SIZE,
    SPATIAL,
    STAGES,
    Block,
    Convolution,
    InceptionV3,
    check_features,
)
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import Entry, to_params
from contextdiff_jax.encoders.tensor_files import content_hash, open_file

BATCH_NORM_EPSILON = 1e-3

_GRAPH_FEATURES = FEATURES[:4]
# Counters that torch stores beside the statistics of batch norms.
_BUFFER = ".num_batches_tracked"


def load_inception(
    path: str | pathlib.Path, features: Sequence[str] = ("2048",)
) -> tuple[InceptionV3, dict[str, Any], dict[str, str]]:
    """Returns the module for `features`, its parameters and the identity of each feature's weights.

    Parameters are float32 numpy arrays. An identity is "sha256:" and 16 hex digits over the names,
    dtypes, shapes and values of the tensors that a feature depends on; deeper ones may be missing.

    Args:
      path: safetensors file.
      features: some of inception.FEATURES.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: features are not known; the file is a torch pickle (the sentence says how to
        convert it), no safetensors or no Inception v3; or tensors are missing, unexpected or of
        another shape.
    """
    check_features(features)
    path = local_folder(epath.Path(path).parent) / epath.Path(path).name
    if not path.is_file():
        raise FileNotFoundError(f"Inception weights {str(path)!r} do not exist")
    tensors = open_file(path)
    graph = "conv.kernel" in tensors
    if graph and not set(features) <= set(_GRAPH_FEATURES):
        raise ValueError(
            f"features = {', '.join(features)}: {str(path)!r} has the names of the TensorFlow "
            f"graph, which are read up to mixed_7: {', '.join(_GRAPH_FEATURES)}"
        )
    table = _graph_table if graph else _torch_table
    wanted = table(features)
    beside = {entry.name for entry in table(_GRAPH_FEATURES if graph else FEATURES)}

    def ignored(name: str) -> bool:
        return name in beside or name.endswith(_BUFFER)

    module = InceptionV3(tuple(features))
    abstract = _abstract(module)
    where = f"{str(path)!r}"
    params = to_params(wanted, abstract if graph else _unfolded(abstract), tensors, ignored, where)
    identities = {
        name: content_hash({entry.name: tensors[entry.name] for entry in table((name,))})
        for name in features
    }
    return (
        module,
        params if graph else _folded(params, where),
        {name: f"sha256:{digits}" for name, digits in identities.items()},
    )


def _abstract(module: InceptionV3) -> Any:
    pixels = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]


def _stages_of(features: Sequence[str]) -> list[str]:
    """Returns the stages that these features need; all for logits."""
    stages = list(STAGES)
    # The spatial features are of the middle of a stage; logits follow the last one.
    ends = {name: name for name in stages} | {SPATIAL: "768"}
    deepest = max(stages.index(ends.get(name, stages[-1])) for name in features)
    return stages[: deepest + 1]


def _convolutions(features: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields each convolution's path in the tree and its name in the TensorFlow graph."""
    singles, blocks = 0, 0
    for stage in _stages_of(features):
        for step in STAGES[stage]:
            if isinstance(step, Convolution):
                yield step.name, _numbered("conv", singles)
                singles += 1
            elif isinstance(step, Block):
                for name, graph_name in _of_branches(step):
                    yield f"{step.name}/{name}", f"{_numbered('mixed', blocks)}_{graph_name}"
                blocks += 1


def _of_branches(block: Block) -> Iterator[tuple[str, str]]:
    towers = 0
    for branch in block.branches:
        flat = [part for step in branch for part in (step if isinstance(step, tuple) else (step,))]
        convolutions = [part for part in flat if isinstance(part, Convolution)]
        alone = branch is block.branches[0] and len(convolutions) == 1
        tower = "" if alone else f"{_numbered('tower', towers)}_"
        for index, convolution in enumerate(convolutions):
            yield convolution.name, tower + _numbered("conv", index)
        towers += not alone


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


def _graph_table(features: Sequence[str]) -> list[Entry]:
    return [
        Entry(f"{path}/{leaf}", f"{name}.{leaf}")
        for path, name in _convolutions(features)
        for leaf in ("kernel", "bias")
    ]


def _torch_table(features: Sequence[str]) -> list[Entry]:
    table = []
    for path, _ in _convolutions(features):
        name = path.replace("/", ".")
        table += [
            Entry(f"{path}/kernel", f"{name}.conv.weight", "conv"),
            Entry(f"{path}/scale", f"{name}.bn.weight"),
            Entry(f"{path}/shift", f"{name}.bn.bias"),
            Entry(f"{path}/mean", f"{name}.bn.running_mean"),
            Entry(f"{path}/variance", f"{name}.bn.running_var"),
        ]
    if {"logits", "logits_unbiased"} & set(features):
        table += [Entry("fc/kernel", "fc.weight", "linear"), Entry("fc/bias", "fc.bias")]
    return table


def _unfolded(abstract: Any) -> Any:
    """Returns the shapes with a batch norm's four vectors in place of each convolution's bias."""
    flat = traverse_util.flatten_dict(abstract)
    for path in [path for path in flat if path[-1] == "bias" and path[0] != "fc"]:
        vector = flat.pop(path)
        flat |= {(*path[:-1], leaf): vector for leaf in ("scale", "shift", "mean", "variance")}
    return traverse_util.unflatten_dict(flat)


def _folded(params: Any, where: str) -> Any:
    """Returns kernel and bias of convolutions that do their batch norms' work; in float64."""
    flat = traverse_util.flatten_dict(params)
    for path in [path[:-1] for path in flat if path[-1] == "variance"]:
        scale, shift, mean, variance = (
            flat.pop((*path, leaf)).astype(np.float64)
            for leaf in ("scale", "shift", "mean", "variance")
        )
        if variance.min() < 0:
            name = ".".join((*path, "bn.running_var"))
            raise ValueError(f"{name} of {where} holds {variance.min():g}, must not be negative")
        gain = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
        flat[*path, "kernel"] = (flat[*path, "kernel"] * gain).astype(np.float32)
        flat[*path, "bias"] = (shift - mean * gain).astype(np.float32)
    return traverse_util.unflatten_dict(flat)
