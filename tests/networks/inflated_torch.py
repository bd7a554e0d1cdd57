"""The inflated U-Nets in torch: diffusers' 2-D one, its modules turned into those of the papers.

Written from their descriptions; frames are folded behind the clip, (b f) c h w. Keys of the
state dict are those of the originals, whose names for the temporal parts are `names`.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional


class JointNorm(nn.GroupNorm):
    """On (b, c, f, h, w): statistics over all frames."""

    def forward(self, x):
        (rows, channels, height, width), frames = x.shape, self.frames
        video = x.reshape(-1, frames, channels, height, width).transpose(1, 2)
        y = functional.group_norm(video, self.num_groups, self.weight, self.bias, self.eps)
        return y.transpose(1, 2).reshape(rows, channels, height, width)


class LowRank(nn.Module):
    def __init__(self, channels, rank):
        super().__init__()
        rank = rank if rank <= channels else channels // 2
        self.down = nn.Conv1d(channels, rank, 3, padding=1, bias=False)
        self.up = nn.Conv1d(rank, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.up(self.down(x))


class PseudoConv(nn.Conv2d):
    """A convolution of pictures, then one over the frames at every position."""

    def forward(self, x):
        y = super().forward(x)
        rows, channels, height, width = y.shape
        frames = self.frames
        y = y.reshape(-1, frames, channels, height, width).permute(0, 3, 4, 2, 1)
        shape = y.shape
        y = self.conv_temporal(y.reshape(-1, channels, frames)).reshape(shape)
        return y.permute(0, 4, 3, 1, 2).reshape(rows, channels, height, width)


class FrameKeys:
    """Self-attention whose keys and values are those of other frames: table (F, n)."""

    def __init__(self, table):
        self.table = torch.tensor(table)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        frames = len(self.table)

        def project(layer):
            y = layer(hidden_states)
            return y.reshape(-1, frames, *y.shape[1:])

        query, key, value = (project(layer) for layer in (attn.to_q, attn.to_k, attn.to_v))
        rows = []
        for frame, others in enumerate(self.table):
            keys = torch.cat([key[:, other] for other in others], 1)
            values = torch.cat([value[:, other] for other in others], 1)
            q, k, v = (
                part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for part in (query[:, frame], keys, values)
            )
            rows.append(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attn.to_out[0](torch.stack(rows, 1).reshape(hidden_states.shape))


def over_time(attention, h, frames):
    """Applies a module to (b d) f c of h ((b f) d c)."""
    rows, positions, channels = h.shape
    h = h.reshape(-1, frames, positions, channels).transpose(1, 2)
    shape = h.shape
    h = attention(h.reshape(-1, frames, channels)).reshape(shape)
    return h.transpose(1, 2).reshape(rows, positions, channels)


class AfterFeedForward(BasicTransformerBlock):
    def forward(self, hidden_states, attention_mask=None, encoder_hidden_states=None, **kwargs):
        h = super().forward(hidden_states, None, encoder_hidden_states)
        norm, attention = (getattr(self, name) for name in self.names)
        return h + over_time(lambda x: attention(norm(x)), h, self.frames)


class Parallel(BasicTransformerBlock):
    def forward(self, hidden_states, attention_mask=None, encoder_hidden_states=None, **kwargs):
        n = self.norm1(hidden_states)
        time = over_time(self.attn_temp, n, self.frames)
        time = self.conv_temp(time.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        h = hidden_states + self.attn1(n) + time
        h = h + self.attn2(self.norm2(h), encoder_hidden_states)
        return h + self.ff(self.norm3(h))


def inflate(unet, table, temporal=None, names=None, conv=None, joint=True):
    """Turns the modules of a UNet2DConditionModel into those of clips of len(table) frames.

    temporal: "after" or "parallel". conv: "full" or a rank.
    """
    frames = len(table)
    for name, module in list(unet.named_modules()):
        resnet = name.endswith(("norm1", "norm2", "conv_norm_out"))
        if joint and isinstance(module, nn.GroupNorm) and resnet:
            module.__class__, module.frames = JointNorm, frames
        if conv and isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            channels = module.out_channels
            full = nn.Conv1d(channels, channels, 3, padding=1) if conv == "full" else None
            module.conv_temporal = full or LowRank(channels, conv)
            module.__class__, module.frames = PseudoConv, frames
        if not isinstance(module, BasicTransformerBlock):
            continue
        attn = module.attn1
        attn.set_processor(FrameKeys(table))
        width = attn.to_q.out_features
        heads = {"heads": attn.heads, "dim_head": width // attn.heads}
        if temporal == "after":
            module.__class__, module.names = AfterFeedForward, names
            setattr(module, names[0], nn.LayerNorm(width))
            setattr(module, names[1], Attention(width, **heads))
        if temporal == "parallel" and "mid_block" not in name:
            module.__class__ = Parallel
            module.attn_temp = Attention(width, **heads)
            module.conv_temp = nn.Conv2d(width, width, 1)
        module.frames = frames
    return unet
