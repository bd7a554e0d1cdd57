"""Oracles of latent diffusion: diffusers' torch models with random weights, layer by layer."""

import functools

import jax
import numpy as np
import torch
from flax import traverse_util

UNET_1 = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
# LDM's: the finest level has no attention. One head.
UNET_LDM = {
    **UNET_1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 1,
}
# Stable Diffusion 2.x's projections and heads; and two transformer blocks, as layout's three.
UNET_2 = {
    **UNET_LDM,
    "layers_per_block": 1,
    "block_out_channels": (16, 32, 48),
    "attention_head_dim": (1, 2, 6),
    "use_linear_projection": True,
    "upcast_attention": True,
    "transformer_layers_per_block": 2,
}
STAGE = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "sample_size": 32,
}
KL = {
    **STAGE,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 4,
}
VQ = {
    **STAGE,
    "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
    "latent_channels": 3,
    "num_vq_embeddings": 40,
    "scaling_factor": 1.0,
}


def randomized(model, seed=0):
    """Draws every parameter: kernels of unit gain, biases and norms far from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            elif parameter.ndim >= 2:
                scale = 1.0 if "quantize" in name else parameter[0].numel() ** -0.5
                parameter.copy_(noise * scale)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


def image(x):
    """(B, H, W, C) numpy to (B, C, H, W) torch."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def array(x):
    """(B, C, H, W) or (B, C, L) torch to numpy with channels last."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def layer_outputs(model, call):
    """Returns the result of call(), and {name: output} of every layer of a torch model with
    parameters of its own."""
    outputs, hooks = {}, []
    for name, layer in model.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            keep = functools.partial(_keep, outputs, name)
            hooks.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        result = call()
    for hook in hooks:
        hook.remove()
    return result, outputs


def _keep(outputs, name, layer, _, output):
    if torch.is_tensor(output):
        channels_first = isinstance(layer, (torch.nn.Conv2d, torch.nn.GroupNorm))
        outputs[name] = array(output) if channels_first else output.detach().numpy()


def captured(module, method=None):
    """Returns a compiled function of (params, *inputs): the result, and {path: layer's output}."""

    @jax.jit
    def run(params, *inputs):
        kept = {"capture_intermediates": True, "mutable": ["intermediates"]}
        return module.apply({"params": params}, *inputs, method=method, **kept)

    def call(params, *inputs):
        result, kept = run(params, *inputs)
        flat = traverse_util.flatten_dict(kept["intermediates"], sep="/")
        return result, {
            path.removesuffix("/__call__"): value[0]
            for path, value in flat.items()
            if path.endswith("/__call__")
        }

    return call


def assert_same_layers(ours, theirs, table, least, tolerance=2e-4):
    """Every layer of both has the same output; `least` of them are compared."""
    compared = 0
    for entry in table:
        path, name = entry.path.rpartition("/")[0], entry.name.rpartition(".")[0]
        if name in theirs and path in ours:
            expected = theirs[name]
            got = np.asarray(ours[path]).reshape(expected.shape)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, atol=tolerance * scale, err_msg=name)
            compared += 1
    assert compared >= least, compared


def assert_same(params, expected):
    """Two parameter trees hold the same numbers."""
    flat, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, expected))
    assert flat.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(flat[path], array, err_msg=path)
