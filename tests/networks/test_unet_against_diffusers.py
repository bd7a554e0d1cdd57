"""The base U-Net against diffusers' UNet2DConditionModel, as DeepFloyd IF has it, with our weights.

IF re-implements Imagen; whoever wrote it read the paper without us. Compared is what is the same:
residual blocks with scale and shift, resampling inside them, the order of skips, attention to the
text's keys and its own, heads, the pooled text, time, the head. Different, and set aside here:

- IF's activation is GELU, ours SiLU: diffusers is told SiLU;
- IF normalizes text before its keys by groups, ours by LayerNorm: it takes the place of theirs;
- IF projects text beside what it pools, ours before it: there is no projection here;
- diffusers' pooling knows no mask: masked text is compared in a block alone.
"""

import re

import flax
import jax
import numpy as np
import pytest

from contextdiff_jax.networks.blocks import AttentionBlock
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.unet import UNet

torch = pytest.importorskip("torch", reason="diffusers' model is torch's")
diffusers = pytest.importorskip("diffusers", reason="the oracle is diffusers' model")

CONFIG = UNetConfig(
    width=16,
    multipliers=(1, 2),
    num_blocks=2,
    attention_levels=(1,),
    head_dim=8,
    groups=8,
    text_dim=24,
    text_width=None,
    scan_blocks=False,
)
RNG = np.random.default_rng(5)
X = RNG.normal(size=(2, 16, 8, 3)).astype(np.float32)
T = np.array([3.0, 940.0], np.float32)
TEXT = RNG.normal(size=(2, 5, CONFIG.text_dim)).astype(np.float32)
MASK = np.array([[True] * 5, [True, True, False, False, False]])

# Ours -> theirs, in this order; a level up counts from the other end there.
NAMES = (
    (r"^conditioning\.time\.hidden", "time_embedding.linear_1"),
    (r"^conditioning\.time\.out", "time_embedding.linear_2"),
    (r"^conditioning\.text\.pool\.token_norm", "add_embedding.norm1"),
    (r"^conditioning\.text\.pool\.pooled_norm", "add_embedding.norm2"),
    (r"^conditioning\.text\.pool\.query_offset", "add_embedding.pool.positional_embedding"),
    (r"^conditioning\.text\.pool\.(q|k|v)(uery|ey|alue)", r"add_embedding.pool.\1_proj"),
    (r"^conditioning\.text\.pool\.out", "add_embedding.proj"),
    (r"^head\.norm", "conv_norm_out"),
    (r"^head\.conv", "conv_out"),
    (r"^middle_res_(\d)", r"mid_block.resnets.\1"),
    (r"^middle_attn", "mid_block.attentions.0"),
    (r"^down_(\d)_resample", r"down_blocks.\1.downsamplers.0"),
    (r"^down_(\d)\.block_(\d)\.res", r"down_blocks.\1.resnets.\2"),
    (r"^down_(\d)\.block_(\d)\.attn", r"down_blocks.\1.attentions.\2"),
    (r"^up_(\d)_resample", r"up_blocks.-\1.upsamplers.0"),
    (r"^up_(\d)\.block_(\d)\.res", r"up_blocks.-\1.resnets.\2"),
    (r"^up_(\d)\.block_(\d)\.attn", r"up_blocks.-\1.attentions.\2"),
    (r"\.(norm|conv)_([12])\.", r".\1\2."),
    (r"\.embedding\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(^|\.)norm\.", r"\1group_norm."),
    (r"(^|\.)attention\.context_norm", r"\1norm_cross"),
    (r"(^|\.)attention\.context_(k|v)(ey|alue)", r"\1add_\2_proj"),
    (r"(^|\.)attention\.(q|k|v)(uery|ey|alue)", r"\1to_\2"),
    (r"(^|\.)attention\.out", r"\1to_out.0"),
    (r"\.(kernel|scale)$", ".weight"),
)


def theirs(params):
    """Our parameters under diffusers' names and in torch's layouts."""
    last, found = len(CONFIG.multipliers) - 1, {}
    for name, leaf in flax.traverse_util.flatten_dict(params, sep=".").items():
        if name == "conditioning.text.null_token":
            continue  # IF hides a prompt by that of an empty one
        kernel = name.endswith("kernel")
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"up_blocks\.-(\d)", lambda m: f"up_blocks.{last - int(m[1])}", name)
        if kernel:
            leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
        if name.endswith("positional_embedding"):
            leaf = leaf[None]
        found[name] = torch.tensor(np.array(leaf))
    return found


def of_if():
    """diffusers' network of CONFIG's sizes."""
    attends = [level in CONFIG.attention_levels for level in range(len(CONFIG.multipliers))]
    down = ["SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends]
    up = ["SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attends[::-1]]
    model = diffusers.UNet2DConditionModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=CONFIG.channels,
        layers_per_block=CONFIG.num_blocks,
        norm_num_groups=CONFIG.groups,
        down_block_types=down,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=up,
        cross_attention_dim=CONFIG.text_dim,
        addition_embed_type="text",
        addition_embed_type_num_heads=CONFIG.text_dim // CONFIG.head_dim,
        attention_head_dim=CONFIG.head_dim,
        resnet_time_scale_shift="scale_shift",
        act_fn="silu",
    )
    for module in model.modules():
        if hasattr(module, "add_k_proj"):
            module.norm_cross = torch.nn.LayerNorm(CONFIG.text_dim)
    return model


def test_the_network_is_that_of_deepfloyd_if(random_params):
    module = UNet(CONFIG)
    params = random_params(module, X, T, TEXT)
    model = of_if()
    model.load_state_dict(theirs(params))  # strict: each of theirs from one of ours
    with torch.no_grad():
        want = model.double()(
            torch.tensor(X).permute(0, 3, 1, 2).double(),
            torch.tensor(T),
            torch.tensor(TEXT).double(),
        ).sample
    got = jax.jit(module.apply)({"params": params}, X, T, TEXT)
    want = want.permute(0, 2, 3, 1).numpy()
    assert np.std(want) > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4 * np.max(np.abs(want)))


def test_masked_text_is_that_of_diffusers_attention(random_params):
    module = AttentionBlock(heads=2, groups=4)
    params = random_params(module, X[..., :1].repeat(16, -1), TEXT, MASK)
    image = RNG.normal(size=(2, 4, 6, 16)).astype(np.float32)
    attention = diffusers.models.attention_processor.Attention(
        query_dim=16,
        cross_attention_dim=16,
        heads=2,
        dim_head=8,
        added_kv_proj_dim=CONFIG.text_dim,
        norm_num_groups=4,
        bias=True,
        processor=diffusers.models.attention_processor.AttnAddedKVProcessor2_0(),
    )
    attention.norm_cross = torch.nn.LayerNorm(CONFIG.text_dim)
    attention.load_state_dict(theirs(params))
    bias = torch.tensor(np.where(MASK, 0, -1e9)).double()[:, None]
    with torch.no_grad():
        want = attention.double()(
            torch.tensor(image).permute(0, 3, 1, 2).double(),
            encoder_hidden_states=torch.tensor(TEXT).double(),
            attention_mask=bias,
        )
    got = module.apply({"params": params}, image, TEXT, MASK)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).numpy(), atol=3e-5)
    unmasked = module.apply({"params": params}, image, TEXT, None)
    assert np.max(np.abs(unmasked[1] - got[1])) > 1e-2
