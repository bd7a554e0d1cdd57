"""The convolutions of a network alone, in both frameworks: what share of its time they take.

Those of one pixel are matrix products in ours, and none of them.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.turns import Side, compare, take_turns
from contextdiff_jax.compilation.model_flops import equations, model_flops


@dataclasses.dataclass(frozen=True)
class Convolution:
    """x: shape (B, H, W, C). kernel: shape (h, w, C, D). stride: of both axes. padding: of each."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    padding: tuple[tuple[int, int], ...]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns noise of the shapes of input and kernel."""
        rng = np.random.default_rng(0)
        return tuple(rng.standard_normal(shape, np.float32) for shape in (self.x, self.kernel))


def convolutions_of(f: Callable, *args: Any) -> list[Convolution]:
    """Returns the convolutions of f for arguments of these shapes, each as often as it runs."""
    found = []
    for equation, _, times in equations(jax.make_jaxpr(f)(*args).jaxpr):
        if equation.primitive.name != "conv_general_dilated":
            continue
        params, (x, kernel) = equation.params, (var.aval.shape for var in equation.invars)
        numbers = params["dimension_numbers"]
        image = tuple(x[axis] for axis in (numbers.lhs_spec[0], *numbers.lhs_spec[2:]))
        window = tuple(kernel[axis] for axis in numbers.rhs_spec[2:])
        widths = x[numbers.lhs_spec[1]], kernel[numbers.rhs_spec[0]]
        convolution = Convolution(
            (*image, widths[0]), (*window, *widths), params["window_strides"][0], params["padding"]
        )
        found += [convolution] * times
    return found


def share_of_flops(f: Callable, *args: Any) -> float:
    """Returns what share of f's operations its convolutions are."""
    alone = sum(
        model_flops(_convolve(each), *map(jax.ShapeDtypeStruct, *_shapes(each)))
        for each in convolutions_of(f, *args)
    )
    return alone / model_flops(f, *args)


def _shapes(each: Convolution) -> tuple[tuple[tuple[int, ...], ...], tuple[Any, Any]]:
    return (each.x, each.kernel), (jnp.float32, jnp.float32)


def _convolve(each: Convolution) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (each.stride,) * 2,
            each.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return convolve


def in_jax(
    convolutions: Sequence[Convolution], dtype: str, options: dict[str, Any] | None
) -> Callable[[], object]:
    """Returns a function that does them all as one compiled program, each with a kernel of its own.

    Inputs of one shape are one array. Kernels are float32, as parameters are.
    """
    inputs = {each.x: jnp.asarray(each.arrays()[0], dtype) for each in convolutions}
    kernels = [jnp.asarray(each.arrays()[1]) for each in convolutions]

    def every(inputs: dict[tuple, jax.Array], kernels: list[jax.Array]) -> list[jax.Array]:
        return [
            _convolve(each)(inputs[each.x], kernel.astype(dtype))
            for each, kernel in zip(convolutions, kernels, strict=True)
        ]

    program = jax.jit(every, compiler_options=options)
    return lambda: jax.block_until_ready(program(inputs, kernels))


def in_torch(
    convolutions: Sequence[Convolution], dtype: str, device: str, layout: torch.memory_format
) -> Callable[[], object]:
    """Returns a function that does them all, one after the other, and waits for the last."""

    def placed(array: np.ndarray, order: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.from_numpy(array).permute(order).to(device, getattr(torch, dtype))
        return tensor.contiguous(memory_format=layout)

    inputs = {each.x: placed(each.arrays()[0], (0, 3, 1, 2)) for each in convolutions}
    kernels = [placed(each.arrays()[1], (3, 2, 0, 1)) for each in convolutions]

    @torch.inference_mode()
    def run() -> float:
        for each, kernel in zip(convolutions, kernels, strict=True):
            (top, bottom), (left, right) = each.padding
            if (top, left) != (bottom, right):
                raise ValueError(f"padding {each.padding}: must be the same on both sides")
            done = F.conv2d(inputs[each.x], kernel, None, each.stride, (top, left))
        return done[0, 0, 0, 0].item()

    return run


def compare_shares(
    forward: tuple[Callable[[], object], Callable[[], object]],
    alone: tuple[Callable[[], object], Callable[[], object]],
    images: int,
    turns: int,
    seconds: float,
) -> dict[str, Any]:
    """Measures a forward pass of both sides and its convolutions alone; prints, returns shares.

    forward, alone: of ours and of diffusers, for so many images.
    """
    names = ("ours", "diffusers")
    results: dict[str, Any] = {}
    for what, runs in (("forward pass", forward), ("convolutions alone", alone)):
        print(f" {what}:")
        sides = [Side(name, run, images) for name, run in zip(names, runs, strict=True)]
        rates = take_turns(sides, turns, seconds)
        results[what] = {"rates": rates, **compare(rates, *names)}
    taken = {
        what: {name: images / statistics.median(found["rates"][name]) for name in names}
        for what, found in results.items()
    }
    whole, part = taken["forward pass"], taken["convolutions alone"]
    results["share_of_time"] = {name: part[name] / whole[name] for name in names}
    results["rest_seconds"] = {name: whole[name] - part[name] for name in names}
    shown = ", ".join(
        f"{name} {1e3 * part[name]:.1f} of {1e3 * whole[name]:.1f} ms "
        f"({results['share_of_time'][name]:.0%})"
        for name in names
    )
    print(f"  convolutions of a forward pass: {shown}")
    return results
