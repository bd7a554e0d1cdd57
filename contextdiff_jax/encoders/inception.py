"""Inception v3 (Szegedy et al. 2016) as FID uses it: the TensorFlow port of 2015-12-05.

It differs from other Inception v3: 1008 classes, no auxiliary head, average pools that count only
pixels inside the image, max pooling in the last block. Batch norms (epsilon 1e-3) are folded into
the convolutions. Blocks and layers are named as in pt_inception-2015-12-05-6726825d.pth.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

IMAGE_SIZE = 299
NUM_CLASSES = 1008

# The default of TPUs would round float32 operands to bfloat16.
_PRECISION = lax.Precision.HIGHEST

SPATIAL = "spatial"
FEATURES = ("64", "192", SPATIAL, "768", "2048", "logits_unbiased", "logits")
"""In order of depth: pooled maps, by their width, then logits without and with their bias.

SPATIAL are sFID's (Nash et al. 2021, as ADM computes it): 7 channels of a map of 17 x 17, 2023
numbers, not pooled: the first of the 1 x 1 convolution of the graph's block mixed_6.
"""


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution with bias and ReLU. same: padded so that stride 1 keeps the size."""

    name: str
    features: int
    height: int = 1
    width: int = 1
    stride: int = 1
    same: bool = True


Step = Convolution | str | tuple[Convolution, ...]
"""A convolution, a pool ("average", "max", "max, stride 2"), or convolutions of the same input."""

Branch = tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """Branches of one input, whose outputs are concatenated."""

    name: str
    branches: tuple[Branch, ...]


def _conv(name: str, features: int, height: int = 1, width: int | None = None) -> Convolution:
    return Convolution(name, features, height, width or height)


def _strided(name: str, features: int) -> Convolution:
    return Convolution(name, features, 3, 3, stride=2, same=False)


def _branches_a(pool_width: int) -> tuple[Branch, ...]:
    return (
        (_conv("branch1x1", 64),),
        (_conv("branch5x5_1", 48), _conv("branch5x5_2", 64, 5)),
        (
            _conv("branch3x3dbl_1", 64),
            _conv("branch3x3dbl_2", 96, 3),
            _conv("branch3x3dbl_3", 96, 3),
        ),
        ("average", _conv("branch_pool", pool_width)),
    )


_BRANCHES_B: tuple[Branch, ...] = (
    (_strided("branch3x3", 384),),
    (_conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _strided("branch3x3dbl_3", 96)),
    ("max, stride 2",),
)


def _branches_c(width: int) -> tuple[Branch, ...]:
    return (
        (_conv("branch1x1", 192),),
        (
            _conv("branch7x7_1", width),
            _conv("branch7x7_2", width, 1, 7),
            _conv("branch7x7_3", 192, 7, 1),
        ),
        (
            _conv("branch7x7dbl_1", width),
            _conv("branch7x7dbl_2", width, 7, 1),
            _conv("branch7x7dbl_3", width, 1, 7),
            _conv("branch7x7dbl_4", width, 7, 1),
            _conv("branch7x7dbl_5", 192, 1, 7),
        ),
        ("average", _conv("branch_pool", 192)),
    )


_BRANCHES_D: tuple[Branch, ...] = (
    (_conv("branch3x3_1", 192), _strided("branch3x3_2", 320)),
    (
        _conv("branch7x7x3_1", 192),
        _conv("branch7x7x3_2", 192, 1, 7),
        _conv("branch7x7x3_3", 192, 7, 1),
        _strided("branch7x7x3_4", 192),
    ),
    ("max, stride 2",),
)


def _branches_e(pool: str) -> tuple[Branch, ...]:
    return (
        (_conv("branch1x1", 320),),
        (
            _conv("branch3x3_1", 384),
            (_conv("branch3x3_2a", 384, 1, 3), _conv("branch3x3_2b", 384, 3, 1)),
        ),
        (
            _conv("branch3x3dbl_1", 448),
            _conv("branch3x3dbl_2", 384, 3),
            (_conv("branch3x3dbl_3a", 384, 1, 3), _conv("branch3x3dbl_3b", 384, 3, 1)),
        ),
        (pool, _conv("branch_pool", 192)),
    )


# The block that begins with the spatial features, and how many of its channels they are.
_SPATIAL_BLOCK, _SPATIAL_CHANNELS = "Mixed_6d", 7

# By the pooled feature that they end in.
STAGES: Mapping[str, tuple[Step | Block, ...]] = MappingProxyType(
    {
        "64": (
            _strided("Conv2d_1a_3x3", 32),
            Convolution("Conv2d_2a_3x3", 32, 3, 3, same=False),
            _conv("Conv2d_2b_3x3", 64, 3),
            "max, stride 2",
        ),
        "192": (
            _conv("Conv2d_3b_1x1", 80),
            Convolution("Conv2d_4a_3x3", 192, 3, 3, same=False),
            "max, stride 2",
        ),
        "768": (
            Block("Mixed_5b", _branches_a(32)),
            Block("Mixed_5c", _branches_a(64)),
            Block("Mixed_5d", _branches_a(64)),
            Block("Mixed_6a", _BRANCHES_B),
            Block("Mixed_6b", _branches_c(128)),
            Block("Mixed_6c", _branches_c(160)),
            Block("Mixed_6d", _branches_c(160)),
            Block("Mixed_6e", _branches_c(192)),
        ),
        "2048": (
            Block("Mixed_7a", _BRANCHES_D),
            Block("Mixed_7b", _branches_e("average")),
            Block("Mixed_7c", _branches_e("max")),
        ),
    }
)


def check_features(features: Sequence[str]) -> None:
    """Raises ValueError unless `features` are some of FEATURES, each once."""
    known = set(features) <= set(FEATURES)
    if not features or not known or len(set(features)) != len(features):
        raise ValueError(
            f"features = {', '.join(features) or '(none)'}: must be some of {', '.join(FEATURES)}, "
            "each once"
        )


class InceptionV3(nn.Module):
    """Pooled features and logits. Only layers that they need exist and have parameters.

    Attributes:
      features: some of FEATURES.
      dtype: compute dtype; parameters and outputs are float32.
    """

    features: tuple[str, ...] = ("2048",)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Maps x (B, 299, 299, 3) in [-1, 1] to {feature: (B, its width) float32}."""
        check_features(self.features)
        if x.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
            raise ValueError(f"x has shape {x.shape}; must be (B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3)")
        found: dict[str, jax.Array] = {}
        for feature, steps in STAGES.items():
            for step in steps:
                x = _apply(step, x, self.dtype)
                if isinstance(step, Block) and step.name == _SPATIAL_BLOCK:
                    maps = x[..., :_SPATIAL_CHANNELS].astype(jnp.float32)
                    found[SPATIAL] = maps.reshape(len(maps), -1)
            found[feature] = x.astype(jnp.float32).mean((1, 2))
            if found.keys() >= set(self.features):
                break
        else:
            unbiased, found["logits"] = _Logits(self.dtype, name="fc")(found["2048"])
            found["logits_unbiased"] = unbiased
        return {name: found[name] for name in self.features}


def _apply(step: Step | Block, x: jax.Array, dtype: Any) -> jax.Array:
    match step:
        case Block():
            return _Mixed(step.branches, dtype, name=step.name)(x)
        case Convolution():
            return _ConvReLU(step, dtype, name=step.name)(x)
        case "max, stride 2":
            return nn.max_pool(x, (3, 3), (2, 2))
        case "max":
            return nn.max_pool(x, (3, 3), padding="SAME")
        case "average":
            return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        case _:
            return jnp.concatenate([_apply(part, x, dtype) for part in step], axis=-1)


class _Mixed(nn.Module):
    branches: tuple[Branch, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = _apply(step, y, self.dtype)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


class _ConvReLU(nn.Module):
    spec: Convolution
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spec = self.spec
        shape = (spec.height, spec.width, x.shape[-1], spec.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (spec.features,))
        # On CPU XLA takes three times as long without padding: it is cut off instead.
        padded = spec.same or spec.stride == 1
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (spec.stride, spec.stride),
            "SAME" if padded else "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_PRECISION,
        )
        if padded and not spec.same:
            top, left = spec.height // 2, spec.width // 2
            y = y[:, top : y.shape[1] - top, left : y.shape[2] - left]
        return nn.relu(y + bias.astype(self.dtype))


class _Logits(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], NUM_CLASSES))
        bias = self.param("bias", nn.initializers.zeros_init(), (NUM_CLASSES,))
        unbiased = jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), precision=_PRECISION
        ).astype(jnp.float32)
        return unbiased, unbiased + bias
