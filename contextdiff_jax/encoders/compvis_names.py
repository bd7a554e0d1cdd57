"""Single-file checkpoints of CompVis' latent diffusion and Stable Diffusion, in diffusers' names.

Block numbers there count along the network; here they count within levels. The decoder's levels of
a first stage count from the finest there, from the coarsest here.
"""

import re
from collections.abc import Iterable, Mapping

from contextdiff_jax.encoders.tensor_files import Tensor

UNET, STAGE = "model.diffusion_model.", "first_stage_model."
EMA = "model_ema."
CLIP_TEXT, OPEN_CLIP_TEXT = "cond_stage_model.transformer.", "cond_stage_model.model."
CLASS_EMBEDDING = "cond_stage_model.embedding.weight"

_UNET_SINGLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_BLOCK = re.compile(
    r"(?P<way>input|output)_blocks\.(?P<number>\d{1,4})\.(?P<part>\d)\.(?P<rest>.+)"
)
_UNET_MIDDLE = re.compile(r"middle_block\.(?P<part>[012])\.(?P<rest>.+)")
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}

_STAGE_LEVEL = re.compile(
    r"(?P<half>encoder|decoder)\.(?P<way>down|up)\.(?P<level>\d{1,2})\."
    r"(?P<kind>block|attn|downsample|upsample)\.(?P<rest>.+)"
)
_STAGE_MIDDLE = re.compile(
    r"(?P<half>encoder|decoder)\.mid\.(?P<part>block_1|attn_1|block_2)\.(?P<rest>.+)"
)
_STAGE_MIDDLES = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_STAGE_KINDS = {"block": "resnets", "attn": "attentions"}
_STAGE_INNER = {
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the U-Net's tensors of the moving average, under the names of those trained.

    Its names are those without the dots. Where a tensor has no average, it is left out.
    """
    inner = UNET.removeprefix("model.")
    names = {name: EMA + (inner + name).replace(".", "") for name in below(UNET, tensors)}
    return {name: tensors[other] for name, other in names.items() if other in tensors}


def unet_to_diffusers(tensors: Mapping[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    """Returns the U-Net's tensors (below UNET) renamed; unknown names stay as they are.

    num_blocks: ResBlocks of each level on the way down.
    """
    return {_unet_name(name, num_blocks): tensor for name, tensor in tensors.items()}


def _unet_name(name: str, num_blocks: int) -> str:
    module, _, leaf = name.rpartition(".")
    if module in _UNET_SINGLE:
        return f"{_UNET_SINGLE[module]}.{leaf}"
    if middle := _UNET_MIDDLE.fullmatch(name):
        return f"mid_block.{_MIDDLE[middle['part']]}.{_resnet(middle['rest'])}"
    block = _UNET_BLOCK.fullmatch(name)
    if not block:
        return name
    down = block["way"] == "input"
    # The first on the way down is conv_in; a downsampler follows each level, an upsampler is part
    # of its last block.
    level, layer = divmod(int(block["number"]) - down, num_blocks + 1)
    rest = block["rest"]
    if rest.startswith("op.") and down:
        return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv.") and not down:
        return f"up_blocks.{level}.upsamplers.0.{rest}"
    kind = "resnets" if block["part"] == "0" else "attentions"
    return f"{'down' if down else 'up'}_blocks.{level}.{kind}.{layer}.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{_RESNET[module]}.{leaf}" if module in _RESNET else rest


def stage_to_diffusers(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Returns the first stage's tensors (below STAGE) renamed; unknown names stay as they are."""
    return {_stage_name(name, levels): tensor for name, tensor in tensors.items()}


def _stage_name(name: str, levels: int) -> str:
    if middle := _STAGE_MIDDLE.fullmatch(name):
        part = _STAGE_MIDDLES[middle["part"]]
        return f"{middle['half']}.mid_block.{part}.{_stage_inner(middle['rest'])}"
    found = _STAGE_LEVEL.fullmatch(name)
    if not found:
        return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)
    level = int(found["level"])
    number = level if found["way"] == "down" else levels - 1 - level
    block = f"{found['half']}.{found['way']}_blocks.{number}"
    if found["kind"] not in _STAGE_KINDS:
        return f"{block}.{found['way']}samplers.0.{found['rest']}"
    index, _, inner = found["rest"].partition(".")
    return f"{block}.{_STAGE_KINDS[found['kind']]}.{index}.{_stage_inner(inner)}"


def _stage_inner(rest: str) -> str:
    module, _, leaf = rest.rpartition(".")
    return f"{_STAGE_INNER.get(module, module)}.{leaf}"


def levels_of(names: Iterable[str]) -> int:
    """Returns how many levels the encoder of a first stage (names below STAGE) has."""
    found = (re.match(r"encoder\.down\.(\d{1,2})\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
