"""CompVis single files of a random diffusers model: names as CompVis' code makes them.

Which tensor of diffusers a name stands for is what diffusers' own converter says.
"""

import torch
from diffusers.loaders import single_file_utils

LEAVES = ("weight", "bias")


def unet_names(config):
    """Names below model.diffusion_model., in the order that openaimodel.py creates them."""
    count, channels = config["layers_per_block"], config["block_out_channels"]
    attending = ["CrossAttn" in kind for kind in config["down_block_types"]]
    yield from _leaves("time_embed.0", "time_embed.2", "input_blocks.0.0")
    number, width, skips = 1, channels[0], [channels[0]]
    for level, wide in enumerate(channels):
        for _ in range(count):
            yield from _block(f"input_blocks.{number}", width != wide, attending[level])
            width, number = wide, number + 1
            skips.append(width)
        if level < len(channels) - 1:
            yield from _leaves(f"input_blocks.{number}.0.op")
            number += 1
            skips.append(width)
    yield from _resnet("middle_block.0", False)
    yield from _transformer("middle_block.1")
    yield from _resnet("middle_block.2", False)
    number = 0
    for level in reversed(range(len(channels))):
        for index in range(count + 1):
            skips.pop()
            yield from _block(f"output_blocks.{number}", True, attending[level])
            if level and index == count:
                yield from _leaves(f"output_blocks.{number}.{1 + attending[level]}.conv")
            number += 1
    yield from _leaves("out.0", "out.2")


def _block(name, shortcut, attends):
    yield from _resnet(f"{name}.0", shortcut)
    if attends:
        yield from _transformer(f"{name}.1")


def _resnet(name, shortcut):
    parts = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    yield from _leaves(*(f"{name}.{part}" for part in parts))
    if shortcut:
        yield from _leaves(f"{name}.skip_connection")


def _transformer(name):
    yield from _leaves(*(f"{name}.{part}" for part in ("norm", "proj_in", "proj_out")))
    block = f"{name}.transformer_blocks.0"
    yield from _leaves(*(f"{block}.norm{i}" for i in (1, 2, 3)))
    yield from _leaves(f"{block}.ff.net.0.proj", f"{block}.ff.net.2")
    for attention in ("attn1", "attn2"):
        yield from (f"{block}.{attention}.to_{part}.weight" for part in "qkv")
        yield from _leaves(f"{block}.{attention}.to_out.0")


def stage_names(config):
    """Names below first_stage_model., as model.py of CompVis makes them."""
    count, channels = config["layers_per_block"], config["block_out_channels"]
    yield from _leaves("quant_conv", "post_quant_conv")
    for half, way, blocks in (("encoder", "down", count), ("decoder", "up", count + 1)):
        yield from _leaves(*(f"{half}.{part}" for part in ("conv_in", "norm_out", "conv_out")))
        for block in ("block_1", "block_2"):
            yield from _stage_resnet(f"{half}.mid.{block}", False)
        parts = ("norm", "q", "k", "v", "proj_out")
        yield from _leaves(*(f"{half}.mid.attn_1.{part}" for part in parts))
        width = channels[0] if half == "encoder" else channels[-1]
        levels = range(len(channels)) if half == "encoder" else reversed(range(len(channels)))
        for level in levels:
            for index in range(blocks):
                name = f"{half}.{way}.{level}.block.{index}"
                yield from _stage_resnet(name, width != channels[level])
                width = channels[level]
            if level != (len(channels) - 1 if half == "encoder" else 0):
                yield from _leaves(f"{half}.{way}.{level}.{way}sample.conv")


def _stage_resnet(name, shortcut):
    yield from _leaves(*(f"{name}.{part}" for part in ("norm1", "conv1", "norm2", "conv2")))
    if shortcut:
        yield from _leaves(f"{name}.nin_shortcut")


def _leaves(*modules):
    for module in modules:
        yield from (f"{module}.{leaf}" for leaf in LEAVES)


def unet_tensors(model):
    """{CompVis' name: numpy array} of a random UNet2DConditionModel."""
    names = [f"model.diffusion_model.{name}" for name in unet_names(model.config)]
    convert = single_file_utils.convert_ldm_unet_checkpoint
    return _filled(names, lambda tensors: convert(tensors, model.config), model)


def stage_tensors(model):
    """{CompVis' name: numpy array} of a random AutoencoderKL; attention's kernels are 4-D."""
    names = [f"first_stage_model.{name}" for name in stage_names(model.config)]
    convert = single_file_utils.convert_ldm_vae_checkpoint
    tensors = _filled(names, lambda tensors: convert(tensors, model.config), model)
    for name in tensors:
        if ".attn_1." in name and tensors[name].ndim == 2:
            tensors[name] = tensors[name][:, :, None, None]
    return tensors


def _filled(names, convert, model):
    numbered = {name: torch.full((1, 1), float(index)) for index, name in enumerate(names)}
    theirs = {name: names[int(number.flatten()[0])] for name, number in convert(numbered).items()}
    state = model.state_dict()
    assert set(theirs) == set(state) and len(set(theirs.values())) == len(names)
    return {name: state[full].numpy().copy() for full, name in theirs.items()}
