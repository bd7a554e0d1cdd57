"""The networks' layers written anew in torch; `p` is a module's parameter tree.

They read our parameter trees but share no code with the networks: float64, NCHW, torch's own
functions, and loops where the networks are vectorized.
"""

import numpy as np
import torch
from torch.nn import functional


def tensor(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def image(array):
    return tensor(array).permute(0, 3, 1, 2)


def numpy_image(x):
    return x.permute(0, 2, 3, 1).numpy()


def dense(p, x):
    return functional.linear(x, tensor(p["kernel"]).T, tensor(p["bias"]))


def conv(p, x, stride=1):
    kernel = tensor(p["kernel"]).permute(3, 2, 0, 1)
    padding = kernel.shape[-1] // 2
    return functional.conv2d(x, kernel, tensor(p["bias"]), stride=stride, padding=padding)


def group_norm(p, x, groups):
    return functional.group_norm(x, groups, tensor(p["scale"]), tensor(p["bias"]), 1e-5)


def layer_norm(p, x):
    weight, bias = (None, None) if p is None else (tensor(p["scale"]), tensor(p["bias"]))
    return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def heads_first(x, heads):
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def attention(p, x, heads, keys, context=None, mask=None):
    """`mask` (B, L) covers the context; attention over masked keys is cut with -inf."""
    query, sources, masks = dense(p["query"], x), [], []
    if keys in ("self", "both"):
        sources.append((dense(p["key"], x), dense(p["value"], x)))
        masks.append(torch.ones(x.shape[:2], dtype=torch.bool))
    if keys in ("context", "both"):
        normed = layer_norm(p["context_norm"], context)
        sources.append((dense(p["context_key"], normed), dense(p["context_value"], normed)))
        masks.append(torch.tensor(np.asarray(mask)))
    key, value = (torch.cat(parts, 1) for parts in zip(*sources, strict=True))
    out = functional.scaled_dot_product_attention(
        *(heads_first(v, heads) for v in (query, key, value)),
        attn_mask=torch.cat(masks, 1)[:, None, None, :],
    )
    return dense(p["out"], out.transpose(1, 2).reshape(x.shape))


def attention_block(p, x, heads, groups, text=None, mask=None):
    batch, channels, height, width = x.shape
    tokens = group_norm(p["norm"], x, groups).flatten(2).transpose(1, 2)
    keys = "self" if text is None else "both"
    out = attention(p["attention"], tokens, heads, keys, text, mask)
    return x + out.transpose(1, 2).reshape(batch, channels, height, width)


def resample(x, direction):
    if direction == "up":
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    return functional.avg_pool2d(x, 2) if direction == "down" else x


def res_block(p, x, groups, embedding=None, direction=None):
    h = functional.silu(group_norm(p["norm_1"], x, groups))
    h = group_norm(p["norm_2"], conv(p["conv_1"], resample(h, direction)), groups)
    if embedding is not None:
        modulation = dense(p["embedding"], functional.silu(embedding))[:, :, None, None]
        scale, shift = modulation.chunk(2, dim=1)
        h = h * (1 + scale) + shift
    x = resample(x, direction)
    if "shortcut" in p:
        x = conv(p["shortcut"], x)
    return x + conv(p["conv_2"], functional.silu(h))


def sinusoid_mlp(p, t, width):
    half = width // 2
    angles = np.asarray(t, np.float64)[:, None] / 10000 ** (np.arange(half) / half)
    h = tensor(np.concatenate([np.cos(angles), np.sin(angles)], 1))
    return dense(p["out"], functional.silu(dense(p["hidden"], h)))


def pooling(p, tokens, mask, heads):
    """One prompt at a time, padding removed instead of masked."""
    pooled = []
    for row, real in zip(tokens, np.asarray(mask), strict=True):
        row = layer_norm(p["token_norm"], row[torch.tensor(real)][None])
        # The mean of no tokens counts as zero.
        mean = row.sum(1, keepdim=True) / max(row.shape[1], 1)
        query = mean + tensor(p["query_offset"])
        keys = torch.cat([query, row], 1)
        out = functional.scaled_dot_product_attention(
            heads_first(dense(p["query"], query), heads),
            heads_first(dense(p["key"], keys), heads),
            heads_first(dense(p["value"], keys), heads),
        )
        out = dense(p["out"], out.transpose(1, 2).reshape(1, -1))
        pooled.append(layer_norm(p["pooled_norm"], out))
    return torch.cat(pooled)
