"""torch-fidelity's Inception v3 without its download: random weights, for comparisons."""

import pathlib
import tempfile
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3


class RandomInception(FeatureExtractorInceptionV3):
    """The extractor with every parameter and statistic drawn, none left at its default.

    Kernels keep the size of what passes through them; batch norms are far from the identity.
    """

    def __init__(self, features: Sequence[str], seed: int = 0):
        self._seed = seed
        with tempfile.NamedTemporaryFile(suffix=".pth") as empty:
            torch.save({}, empty.name)
            super().__init__("inception-v3-random", list(features), empty.name)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """Draws the weights where there are none to load."""
        if state_dict:
            return super().load_state_dict(state_dict, strict, assign)
        generator = torch.Generator().manual_seed(self._seed)
        return super().load_state_dict(
            {name: _drawn(name, value, generator) for name, value in self.state_dict().items()}
        )

    def save(self, path: pathlib.Path) -> pathlib.Path:
        """Writes the weights as safetensors, under the names of pt_inception-2015-12-05."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path)
        return path


def _drawn(name: str, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    noise = torch.randn(value.shape, generator=generator)
    if name.endswith("conv.weight"):
        return noise * (2.0 / value[0].numel()) ** 0.5
    if name == "fc.weight":
        return noise * value.shape[1] ** -0.5
    if name.endswith("bn.weight"):
        return 1.0 + 0.2 * noise
    if name.endswith("running_var"):
        return 0.1 + (1.0 + 0.2 * noise).abs()
    return 0.2 * noise


_BLOCK_A = "conv tower_conv tower_conv_1 tower_1_conv tower_1_conv_1 tower_1_conv_2 tower_2_conv"
_BLOCK_B = "conv tower_conv tower_conv_1 tower_conv_2"
_BLOCK_C = (
    "conv tower_conv tower_conv_1 tower_conv_2 tower_1_conv tower_1_conv_1 tower_1_conv_2 "
    "tower_1_conv_3 tower_1_conv_4 tower_2_conv"
)
_GRAPH = (3 * (_BLOCK_A,)) + (_BLOCK_B,) + 4 * (_BLOCK_C,)


def from_graph_weights(path: pathlib.Path) -> RandomInception:
    """Returns the extractor of 768 features with weights named as in TensorFlow's graph.

    The graph's convolutions, in its order, are torch's in the order in which torch defines them;
    batch norms are already folded into them, so that the module's own become a shift.
    """
    module = RandomInception(["768"])
    names = ["conv", *(f"conv_{index}" for index in range(1, 5))]
    for index, block in enumerate(_GRAPH):
        prefix = f"mixed_{index}" if index else "mixed"
        names += [f"{prefix}_{name}" for name in block.split()]
    tensors = load_file(path)
    layers = [layer for layer in module.modules() if isinstance(layer, BasicConv2d)]
    for name, layer in zip(names, layers, strict=False):
        kernel = tensors.pop(f"{name}.kernel").float().permute(3, 2, 0, 1)
        state = {
            "conv.weight": kernel,
            "bn.weight": torch.full_like(layer.bn.weight, (1.0 + layer.bn.eps) ** 0.5),
            "bn.bias": tensors.pop(f"{name}.bias"),
            "bn.running_mean": torch.zeros_like(layer.bn.running_mean),
            "bn.running_var": torch.ones_like(layer.bn.running_var),
        }
        layer.load_state_dict(state | {"bn.num_batches_tracked": torch.tensor(0)})
    if tensors:
        raise ValueError(f"{str(path)!r} holds more than is read: {', '.join(sorted(tensors))}")
    return module
