"""LPIPS: how far two pictures look apart, by SqueezeNet's features (Zhang et al. 2018, v0.1).

Weights are those of torchvision's squeezenet1_1 (features.N...) and of the package lpips
(lin0.model.1.weight ...), as safetensors in one folder.
"""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import Entry, to_params
from contextdiff_jax.encoders.tensor_files import Tensor, content_hash, open_file

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Of torchvision's numbered features: a pool, or a fire module by its widths (squeeze, expand).
_LAYERS = {
    2: None,
    **{3: (16, 64), 4: (16, 64), 5: None, 6: (32, 128), 7: (32, 128), 8: None},
    **{9: (48, 192), 10: (48, 192), 11: (64, 256), 12: (64, 256)},
}
_COMPARED = (4, 7, 9, 10, 11, 12)  # layers whose outputs are compared, beside the first one's
_WIDTHS = (64, 128, 256, 384, 384, 512, 512)  # of what is compared
_EPSILON = 1e-10

LEAST = 17
"""Pixels of a side that the deepest layer leaves something of."""


class LPIPS(nn.Module):
    """The distance of two pictures, in float32."""

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Returns the distances (B,) of pictures (B, H, W, 3) in [-1, 1], LEAST or larger."""
        x = (jnp.concatenate([first, second]) - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        x = nn.relu(_conv(64, 3, "features_0", strides=2, padding="VALID")(x))
        compared = [x]
        for number, widths in _LAYERS.items():
            x = _pool(x) if widths is None else _fire(x, widths, f"features_{number}")
            if number in _COMPARED:
                compared.append(x)
        weights = [
            self.param(f"lin{number}", nn.initializers.ones, (1, 1, width, 1))
            for number, width in enumerate(_WIDTHS)
        ]
        return sum(map(_difference, compared, weights))


def _difference(features: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns (B,) of features (2B, H, W, C): weighted squares of unit vectors' differences."""
    length = jnp.sqrt(jnp.square(features).sum(axis=-1, keepdims=True))
    first, second = jnp.split(features / (length + _EPSILON), 2)
    return (jnp.square(first - second) @ weights[0, 0]).mean(axis=(1, 2, 3))


def _conv(features: int, side: int, name: str, **settings: Any) -> nn.Conv:
    # The default of TPUs would round float32 operands to bfloat16.
    return nn.Conv(features, (side, side), precision=lax.Precision.HIGHEST, name=name, **settings)


def _pool(x: jax.Array) -> jax.Array:
    """Takes the largest of 3 x 3 at every second place, also of what is cut off by the border."""
    ends = ((0, (side - 3) % 2) for side in x.shape[1:3])
    return nn.max_pool(x, (3, 3), (2, 2), tuple(ends))


def _fire(x: jax.Array, widths: tuple[int, int], name: str) -> jax.Array:
    squeeze, expand = widths
    x = nn.relu(_conv(squeeze, 1, f"{name}_squeeze")(x))
    parts = (_conv(expand, side, f"{name}_expand{side}x{side}")(x) for side in (1, 3))
    return nn.relu(jnp.concatenate(list(parts), axis=-1))


def load_lpips(folder: str | pathlib.Path) -> tuple[dict[str, Any], str]:
    """Returns the parameters of `LPIPS()`, float32, and the identity of their weights.

    folder: of the backbone's and the linear layers' safetensors; SqueezeNet's classifier is not
    read. Raises FileNotFoundError where there are none, ValueError where tensors are missing,
    unexpected, twice there, of another shape or not finite.
    """
    folder = local_folder(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} holds no *.safetensors: must hold LPIPS' weights")
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = open_file(file)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{str(folder)!r} has {twice[0]} in two files: must have it once")
        tensors |= found
    pair = [jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)] * 2
    abstract = jax.eval_shape(LPIPS().init, jax.random.key(0), *pair)["params"]
    table = list(_table(abstract))
    where = f"{str(folder)!r}"
    params = to_params(table, abstract, tensors, lambda n: n.startswith("classifier."), where)
    used = {entry.name: tensors[entry.name] for entry in table}
    return params, f"sha256:{content_hash(used)}"


def _table(abstract: Any) -> list[Entry]:
    found = [
        Entry(name, f"{name}.model.1.weight", "conv") for name in abstract if name[:3] == "lin"
    ]
    for name in abstract:
        if name.startswith("features_"):
            module = name.replace("_", ".")
            found.append(Entry(f"{name}/kernel", f"{module}.weight", "conv"))
            found.append(Entry(f"{name}/bias", f"{module}.bias"))
    return found
