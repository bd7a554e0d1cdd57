"""Names that diffusers gives to the parameters of the latent U-Net and of first stages.

The trees of ``networks`` are walked, so that the tables cover every configuration, scanned blocks
too. Names that older versions gave are brought to today's.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax import traverse_util

from contextdiff_jax.encoders.name_map import Entry, Path
from contextdiff_jax.encoders.tensor_files import Tensor

_SINGLE = {
    "time/hidden": "time_embedding.linear_1",
    "time/out": "time_embedding.linear_2",
    "head/norm": "conv_norm_out",
    "head/conv": "conv_out",
    "head": "conv_out",  # of its convolution over time
    "hint/conv_in": "controlnet_cond_embedding.conv_in",
    "hint/conv_out": "controlnet_cond_embedding.conv_out",
    "zero_middle": "controlnet_mid_block",
}
# Of a control branch, numbered.
_CONTROL = {"hint/blocks_": "controlnet_cond_embedding.blocks.", "zero_": "controlnet_down_blocks."}
_LEVEL = re.compile(r"(?P<way>down|up)_(?P<level>\d+)(?P<resample>_resample)?")
_MIDDLE = re.compile(r"middle[_/](?P<kind>res|attn)(_(?P<index>\d))?")
_SCANNED = re.compile(r"blocks_(?P<first>\d+)_\d+")
_OVER_TIME = re.compile(r"(conv\w*|head)_temporal")
_KINDS = {"res": "resnets", "attn": "attentions"}
# Modules inside a ResBlock, a transformer or a first stage's attention; others keep their names.
_INNER = {
    "norm_1": "norm1",
    "norm_2": "norm2",
    "norm_3": "norm3",
    "conv_1": "conv1",
    "conv_2": "conv2",
    "embedding": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "self": "attn1",
    "cross": "attn2",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "mlp_in": "ff.net.0.proj",
    "mlp_out": "ff.net.2",
    "attention": None,
    # Temporal parts, as Tune-A-Video and ControlVideo name them.
    "temporal": "attn_temp",
    "norm_temporal": "norm_temp",
    "temporal_out": "conv_temp",
}
# Attention of a first stage: its old names, and the axes that make its kernels 1x1 convolutions.
_ATTENTION = re.compile(r"(?P<module>.*\battentions\.\d+)\.(?P<part>\w+)(?P<rest>\..*)")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet_table(abstract: Any, levels: int) -> list[Entry]:
    """Returns the table of a LatentUNet's, ControlNet's or Autoencoder's tree of so many levels."""
    return _table(abstract, lambda path: _module_name(path, levels))


def tiny_table(abstract: Any) -> list[Entry]:
    """Returns the table of a TinyAutoencoder's tree.

    diffusers numbers the decoder's layers without the first, which has no parameters.
    """

    def name(path: Path) -> str:
        half, layer, *inner = path
        number = int(layer.removeprefix("layers_")) - (half == "decoder")
        return ".".join([half, "layers", str(number), *(part.replace("_", ".") for part in inner)])

    return _table(abstract, name)


def _table(abstract: Any, module_name: Callable[[Path], str]) -> list[Entry]:
    entries = []
    for path, leaf in traverse_util.flatten_dict(nn.unbox(abstract)).items():
        joined = "/".join(path)
        if path == ("codebook",):
            entries.append(Entry(joined, "quantize.embedding.weight"))
            continue
        name = f"{module_name(path[:-1])}.{'bias' if path[-1] == 'bias' else 'weight'}"
        scanned = _SCANNED.search(joined)
        axes = len(leaf.shape) - (scanned is not None)
        layout = {4: "conv", 3: "time", 2: "linear", 1: "same"}[axes]
        entries.append(Entry(joined, name, layout, int(scanned["first"]) if scanned else 0))
    return entries


def _module_name(path: Path, levels: int) -> str:
    for depth, part in enumerate(path):
        if _OVER_TIME.fullmatch(part):  # a layer behind a convolution
            conv = (*path[:depth], part.removesuffix("_temporal"))
            rest = [inner for inner in path[depth + 1 :] if inner != "full"]
            return ".".join([_module_name(conv, levels), "conv_temporal", *rest])
    joined = "/".join(path)
    if path[0] in ("encoder", "decoder"):
        return f"{path[0]}.{_module_name(path[1:], levels)}"
    if middle := _MIDDLE.match(joined):
        rest = joined[middle.end() :].strip("/").split("/")
        return ".".join(
            ["mid_block", _KINDS[middle["kind"]], middle["index"] or "0", *_inner(rest)]
        )
    level = _LEVEL.fullmatch(path[0])
    if level is None:
        for prefix, name in _CONTROL.items():
            if joined not in _SINGLE and joined.startswith(prefix):
                return name + joined.removeprefix(prefix)
        return _SINGLE.get(joined, joined)
    number, way = int(level["level"]), level["way"]
    block = f"{way}_blocks.{number if way == 'down' else levels - 1 - number}"
    if level["resample"]:
        return f"{block}.{way}samplers.0.conv"
    index, kind, *rest = path[1:]
    index = "{i}" if _SCANNED.fullmatch(index) else index.removeprefix("block_")
    return ".".join([block, _KINDS[kind], index, *_inner(rest)])


def _inner(parts: list[str]) -> list[str]:
    named = [
        f"transformer_blocks.{part.removeprefix('block_')}"
        if part.startswith("block_")
        else _INNER.get(part, part)
        for part in parts
    ]
    return [part for part in named if part is not None]


def with_todays_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a first stage's tensors with today's names of attention, its kernels matrices."""
    renamed = {}
    for name, tensor in tensors.items():
        found = _ATTENTION.fullmatch(name)
        if found:
            part = _OLD_ATTENTION.get(found["part"], found["part"])
            name = f"{found['module']}.{part}{found['rest']}"
            tensor = squeezed(tensor)
        renamed[name] = tensor
    return renamed


def squeezed(tensor: Tensor) -> Tensor:
    """Returns the kernel (out, in) of a 1x1 convolution (out, in, 1, 1); others as they are."""
    if len(tensor.shape) != 4 or tensor.shape[2:] != (1, 1):
        return tensor
    return dataclasses.replace(
        tensor, shape=tensor.shape[:2], read=lambda: tensor.read()[:, :, 0, 0]
    )


def with_numbered_layers(
    encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the tensors of a tiny autoencoder's two original files under diffusers' names."""
    renamed = {f"encoder.layers.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in decoder.items():
        number, _, rest = name.partition(".")
        shifted = str(int(number) - 1) if number.isdecimal() and len(number) < 5 else number
        renamed[f"decoder.layers.{shifted}.{rest}"] = tensor
    return renamed
