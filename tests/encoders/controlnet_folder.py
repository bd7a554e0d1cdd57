"""A tiny random ControlNet for the tiny Stable Diffusion folder, as diffusers and CompVis have it.

diffusers' zero convolutions are random too: at zero they would hide everything.
"""

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.numpy import save_file

from tests.encoders.compvis_layout import unet_names
from tests.encoders.latent_oracles import UNET_1, randomized

KEYS = ("block_out_channels", "down_block_types", "attention_head_dim", "norm_num_groups")


def model(layers_per_block=1, hint=(8, 12, 16), seed=7):
    """Its hint is 4 times as large as the latents, as the tiny first stage has it."""
    sizes = {key: UNET_1[key] for key in KEYS}
    found = diffusers.ControlNetModel(
        **sizes,
        layers_per_block=layers_per_block,
        cross_attention_dim=24,
        conditioning_embedding_out_channels=hint,
    )
    return randomized(found, seed)


def write(folder, **sizes):
    """Writes the folder, and returns it."""
    model(**sizes).save_pretrained(folder)
    return folder


def write_single_file(path, branch):
    """Writes the tensors of a ControlNetModel under the names of ControlNet's own files.

    Which tensor a name stands for is what diffusers' own converter says.
    """
    config = branch.config
    names = [n for n in unet_names(config) if not n.startswith(("output_blocks", "out."))]
    count = len(config["block_out_channels"]) * (config["layers_per_block"] + 1)
    modules = [f"zero_convs.{number}.0" for number in range(count)] + ["middle_block_out.0"]
    modules += [f"input_hint_block.{number}" for number in range(0, 15, 2)]
    names += [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
    names = [f"control_model.{name}" for name in names]
    numbered = {name: torch.full((1, 1), float(index)) for index, name in enumerate(names)}
    converted = convert_controlnet_checkpoint(numbered, config)
    theirs = {name: names[int(number.flatten()[0])] for name, number in converted.items()}
    state = branch.state_dict()
    assert set(theirs) == set(state)
    save_file({name: state[full].numpy().copy() for full, name in theirs.items()}, path)
    return path
