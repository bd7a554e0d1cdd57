"""TAEF2 in torch, written from the table of its layers, reading the published files."""

import torch
from safetensors.torch import load_file
from torch.nn import functional

ENCODER = ["conv"] + ["block"] + (["down"] + ["block"] * 3) * 2 + ["down"] + ["pool"] * 3 + ["conv"]
DECODER = ["tanh", "conv", "relu", *["pool"] * 3, *(["up", "conv"] + ["block"] * 3) * 2]
DECODER += ["up", "conv", "block", "conv"]


def run(path, layers, x):
    """Maps (B, C, H, W): pictures in [0, 1] to latents, or latents to pictures."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    with torch.no_grad():
        for index, kind in enumerate(layers):
            x = _layer(kind, str(index), tensors, x)
    return x


def _conv(tensors, name, x, stride=1):
    kernel = tensors[f"{name}.weight"]
    bias = tensors.get(f"{name}.bias")
    return functional.conv2d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)


def _layer(kind, name, tensors, x):
    if kind == "tanh":
        return 3 * torch.tanh(x / 3)
    if kind == "relu":
        return functional.relu(x)
    if kind == "up":
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    if kind in ("conv", "down"):
        return _conv(tensors, name, x, 2 if kind == "down" else 1)
    if kind == "pool":
        h = _conv(tensors, f"{name}.pool.0", x)
        norm = (tensors[f"{name}.pool.1.weight"], tensors[f"{name}.pool.1.bias"])
        h = functional.relu(functional.group_norm(h, 4, *norm))
        x = x + _conv(tensors, f"{name}.pool.3", h)
    h = functional.relu(_conv(tensors, f"{name}.conv.0", x))
    h = functional.relu(_conv(tensors, f"{name}.conv.2", h))
    return functional.relu(_conv(tensors, f"{name}.conv.4", h) + x)
