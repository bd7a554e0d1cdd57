"""Multiplications and additions of one instruction: products, convolutions, libraries' kernels.

A GPU's program calls cuBLAS and cuDNN for them; what such a call computes is in its attributes.
"""

import math
import re

from contextdiff_jax.compilation.hlo import Array, Computation, Instruction
from contextdiff_jax.compilation.model_flops import valid_taps

_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\S+?)_(\S+?)->([^\s,]+)")
_BATCH_GROUPS = re.compile(r"\bbatch_group_count=(\d+)")
_CONTRACTING = re.compile(r"\blhs_contracting_dims=\{([\d,]*)\}")
_CALL_CONTRACTING = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# JAX's splash attention: products of queries x keys x width in each of its kernels, the logits'
# recomputation and two of gradients in one, three of them in the other.
_ATTENTION = re.compile(r"^splash_m[hq]a_(fwd|dq|dkv)")
_ATTENTION_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_CUDNN_ATTENTION = re.compile(r"__cudnn\$fmha\w*?(Backward)?$")
_CUDNN_CONVOLUTION = re.compile(r"__cudnn\$conv\w*?(BackwardInput|BackwardFilter)?$")
_DEFAULTS = (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))


def target(instruction: Instruction) -> str:
    """Returns what a custom call calls."""
    found = _TARGET.search(instruction.attributes)
    return found.group(1) if found else instruction.name


def of_library(instruction: Instruction) -> bool:
    """Returns whether a custom call is one of cuBLAS or cuDNN."""
    return target(instruction).startswith(("__cublas$", "__cudnn$"))


def flops(computation: Computation, instruction: Instruction) -> float | None:
    """Returns the operations of one instruction run once; None for a custom call it cannot count.

    Elementwise work is 0.
    """
    if instruction.opcode == "dot":
        found = _CONTRACTING.search(instruction.attributes)
        return _product(computation, instruction, found.group(1) if found else "")
    if instruction.opcode == "convolution":
        (lhs,), (rhs,) = computation.arrays(instruction)[:2]
        return _convolution(instruction, lhs, rhs, instruction.shape[0])
    if instruction.opcode == "custom-call":
        return _called(computation, instruction)
    return 0.0


def _product(computation: Computation, instruction: Instruction, contracting: str) -> float:
    lhs = computation.arrays(instruction)[0][0]
    axes = [int(axis) for axis in contracting.split(",") if axis]
    return 2.0 * instruction.shape[0].size * math.prod(lhs.dims[axis] for axis in axes)


def _called(computation: Computation, instruction: Instruction) -> float | None:
    if kernel := _ATTENTION.match(instruction.name):
        return _splash(computation, instruction, _ATTENTION_PRODUCTS[kernel.group(1)])
    name, shapes = target(instruction), computation.arrays(instruction)
    if name.startswith("__cublas$"):
        found = _CALL_CONTRACTING.search(instruction.attributes)
        return found and _product(computation, instruction, found.group(1).replace('"', ""))
    if kind := _CUDNN_CONVOLUTION.match(name):
        (first,), (second,), result = shapes[0], shapes[1], instruction.shape[0]
        # Window and labels are the forward convolution's: input, kernel -> result.
        places = {
            "BackwardInput": (result, second, first),
            "BackwardFilter": (first, result, second),
        }
        return _convolution(instruction, *places.get(kind.group(1), (first, second, result)))
    if kind := _CUDNN_ATTENTION.match(name):
        (query,), (key,) = shapes[:2]  # (B, Q, heads, D), (B, K, heads, D)
        # Two products, or the logits again and four of gradients.
        return (5 if kind.group(1) else 2) * 2.0 * query.size * key.dims[1]
    return None


def _splash(computation: Computation, instruction: Instruction, products: int) -> float:
    """Masked and padded keys count, as the kernel does not skip them."""
    # Before them come the blocks' indices, behind them segments and gradients.
    arrays = [shape[0] for shape in computation.arrays(instruction)]
    query, key = [array for array in arrays if array.dtype in ("bf16", "f32", "f16")][:2]
    return products * 2.0 * query.size * key.dims[-2]


def _convolution(instruction: Instruction, lhs: Array, rhs: Array, out: Array) -> float:
    """2 x products of real input and kernel values: padding and dilation holes are no work."""
    labels = _LABELS.search(instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels")
    lhs_labels, rhs_labels, out_labels = labels.groups()
    window = _window(instruction.attributes)
    spatial = sorted(label for label in rhs_labels if label.isdigit())
    taps = 1.0
    for number, label in enumerate(spatial):
        taps *= valid_taps(
            lhs.dims[lhs_labels.index(label)],
            rhs.dims[rhs_labels.index(label)],
            out.dims[out_labels.index(label)],
            *(window[key][number] if key in window else default for key, default in _DEFAULTS),
        )
    # The kernel's input features are those of one group already; the batch is divided here.
    batch_groups = _BATCH_GROUPS.search(instruction.attributes)
    batch = lhs.dims[lhs_labels.index("b")] // int(batch_groups.group(1) if batch_groups else 1)
    features = rhs.dims[rhs_labels.index("i")] * rhs.dims[rhs_labels.index("o")]
    return 2.0 * batch * features * taps


def _window(attributes: str) -> dict[str, list]:
    found = _WINDOW.search(attributes)
    fields = dict(item.split("=") for item in found.group(1).split()) if found else {}
    parsed: dict[str, list] = {}
    for key, value in fields.items():
        if key == "pad":
            parsed[key] = [int(pair.split("_")[0]) for pair in value.split("x")]
        else:
            parsed[key] = [int(part) for part in value.split("x")]
    return parsed
