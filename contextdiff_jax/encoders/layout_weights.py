"""LDM's published layout transformers: names of their tensors, reading and writing them.

They lie in the single file of a layout model below `cond_stage_model.` (Rombach et al. 2022,
BERTEmbedder).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders.name_map import Entry, from_params, to_params
from contextdiff_jax.encoders.tensor_files import Tensor
from contextdiff_jax.networks.layout_transformer import LayoutTransformer, LayoutTransformerConfig

PREFIX = "cond_stage_model.transformer."
_TOKENS, _POSITIONS = f"{PREFIX}token_emb.weight", f"{PREFIX}pos_emb.emb.weight"
_MOST_LAYERS = 256  # published ones have 16
_LAYER = re.compile(re.escape(f"{PREFIX}attn_layers.layers.") + r"(\d{1,4})\.")


def layout_transformer_params(
    config: LayoutTransformerConfig,
    tensors: Mapping[str, Tensor],
    where: str,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Returns the parameters of LDM's tensors, for `LayoutTransformer(config)`.

    tensors: of a whole model or of its conditioner; names without PREFIX are not read. where: their
    source, for messages. Raises ValueError as `to_params` does.
    """
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    return to_params(_table(config), _abstract(config), own, lambda _: False, where, dtype)


def holds_layout_transformer(names: Collection[str]) -> bool:
    """Whether a file's tensors are a layout model's."""
    return _TOKENS in names


def load_layout_transformer(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Returns the parameters of a file's transformer, of the sizes that its shapes say.

    Raises ValueError as `to_params` does.
    """
    shapes = {name: tensors[name].shape for name in (_TOKENS, _POSITIONS) if name in tensors}
    if [len(shape) for shape in shapes.values()] != [2, 2]:
        raise ValueError(f"{where}: {_TOKENS} and {_POSITIONS} must be there, of two axes each")
    found = (_LAYER.match(name) for name in tensors)
    layers = max((int(match[1]) // 2 + 1 for match in found if match), default=0)
    if layers > _MOST_LAYERS:
        raise ValueError(f"{where} has {layers} layers of a layout: must be {_MOST_LAYERS} or less")
    (rows, width), (length, _) = shapes[_TOKENS], shapes[_POSITIONS]
    # How many heads there are shows in no shape.
    config = LayoutTransformerConfig(rows, length, width, layers, heads=1)
    return layout_transformer_params(config, tensors, where)


def layout_transformer_tensors(
    config: LayoutTransformerConfig, params: Any
) -> dict[str, np.ndarray]:
    """Returns the tensors, by LDM's names, of `LayoutTransformer(config)`'s parameters.

    Raises ValueError where they do not fit the config.
    """
    return from_params(_table(config), _abstract(config), params)


def _abstract(config: LayoutTransformerConfig) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = LayoutTransformer(config).init
    return nn.unbox(jax.eval_shape(init, jax.random.key(0), tokens)["params"])


def _table(config: LayoutTransformerConfig) -> list[Entry]:
    found = [
        Entry("tokens", _TOKENS),
        Entry("positions", _POSITIONS),
        *_norm("norm", f"{PREFIX}norm"),
    ]
    for number in range(config.layers):
        ours, layers = f"layer_{number}", f"{PREFIX}attn_layers.layers"
        attention, mlp = f"{layers}.{2 * number}", f"{layers}.{2 * number + 1}"
        found += _norm(f"{ours}/norm_1", f"{attention}.0") + _norm(f"{ours}/norm_2", f"{mlp}.0")
        for name, torch_name in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            weight = f"{attention}.1.{torch_name}.weight"
            found.append(Entry(f"{ours}/attention/{name}/kernel", weight, "linear"))
        found += _linear(f"{ours}/attention/out", f"{attention}.1.to_out")
        found += _linear(f"{ours}/mlp_in", f"{mlp}.1.net.0.0")
        found += _linear(f"{ours}/mlp_out", f"{mlp}.1.net.2")
    return found


def _norm(path: str, name: str) -> list[Entry]:
    return [Entry(f"{path}/scale", f"{name}.weight"), Entry(f"{path}/bias", f"{name}.bias")]


def _linear(path: str, name: str) -> list[Entry]:
    kernel = Entry(f"{path}/kernel", f"{name}.weight", "linear")
    return [kernel, Entry(f"{path}/bias", f"{name}.bias")]
