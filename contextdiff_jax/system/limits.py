"""The largest sizes that a configuration may ask for: one table for configs, exports and weights.

Sections of a config are read from files that strangers made, too (export.json, config.json). What
lies above these limits is a mistake or an attack: nobody trains it, and to build it would take
memory or time without end. Smallest values, and the largest of numbers that mean a share, are not
here: each section's `validate` has them.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from contextdiff_jax.system.seeds import LARGEST_SEED

_COUNT = 10**9  # of steps and of samples
_BATCH = 2**20
_SIDE = 4096  # pixels of a picture
_WIDTH = 2**14  # channels of tokens or levels; T5-XXL has 4096
_MLP_WIDTH = 2**17
_DEPTH = 256  # blocks of a transformer; ViT-22B has 48
_HEADS = 1024
_VOCABULARY = 2**28  # entries; the largest published vocabularies have a million
_TOKENS = 2**16  # of one text
_TIMES = 10_000  # of a diffusion; 1000 are usual, 4000 were published
_DEVICES = 2**20
_FACTOR = 10**6  # of losses, gradients and guidance

_ANY_UNET = {
    "image_channels": 64,
    "groups": _WIDTH,
    "remat_levels": 12,
    "attention_levels": 12,
    "num_blocks": 64,
}
_DENOISER = {**_ANY_UNET, "text_dim": _WIDTH, "text_width": _WIDTH}

LIMITS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "Config": {"seed": LARGEST_SEED},
        "RunConfig": {
            **dict.fromkeys(("steps", "log_every", "save_every", "checkpoints_kept"), _COUNT),
            "batch_size": _BATCH,
        },
        "DiffusionTaskConfig": {"diagnose_every": _COUNT},
        "SuperResolutionConfig": {"low_resolution": _SIDE},
        "DataConfig": {
            "resolution": _SIDE,
            **dict.fromkeys(("min_side", "min_original_side"), 2**20),
            "max_pixels": 178_956_970,  # PIL opens no larger picture
            "limit": 10**12,
            **dict.fromkeys(("threads", "processes"), 1024),
            "keep_mib": 2**24,  # 16 TiB
        },
        "OptimizerConfig": {
            "warmup_steps": _COUNT,
            **dict.fromkeys(
                ("learning_rate", "weight_decay", "clip_norm", "adapter_rate"), _FACTOR
            ),
            "accumulation": _BATCH,
        },
        "PreviewConfig": {"every": _COUNT, "num_steps": _TIMES},
        "SamplesConfig": {"seed": LARGEST_SEED, "batch_size": _BATCH},
        "TokenizerConfig": {"vocab_size": _VOCABULARY, "sample": _COUNT},
        "EncoderRef": {"max_length": _TOKENS},
        "MeshConfig": dict.fromkeys(("data", "fsdp", "tensor"), _DEVICES),
        "UNetConfig": {
            **_DENOISER,
            "width": _WIDTH,
            "multipliers": 64,
            "head_dim": _WIDTH,
        },
        "EfficientUNetConfig": {**_DENOISER, "channels": _WIDTH, "strides": 16, "heads": _HEADS},
        "LatentUNetConfig": {
            **_ANY_UNET,
            "channels": _WIDTH,
            "num_blocks": 16,
            "heads": _HEADS,
            "depth": 24,  # of every block's transformer
            "context_dim": _WIDTH,
            "sample_size": _SIDE,
        },
        "AutoencoderConfig": {
            "image_channels": 64,
            "channels": _WIDTH,
            "num_blocks": 64,
            "attention_levels": 12,
            "latent_channels": 1024,
            "codes": 2**20,
            "groups": _WIDTH,
            "scaling_factor": _FACTOR,
            "sample_size": _SIDE,
        },
        "TinyAutoencoderConfig": {
            "image_channels": 64,
            "latent_channels": 1024,
            "width": _WIDTH,
            **dict.fromkeys(("encoder_blocks", "decoder_blocks"), 64),
        },
        "AdapterConfig": {
            "image_channels": 64,
            "patch_size": _SIDE,
            **dict.fromkeys(("width", "time_width", "image_dim", "text_dim"), _WIDTH),
            "num_blocks": _DEPTH,
            "heads": _HEADS,
            "mlp_ratio": 64,
            "limit": _FACTOR,
        },
        "DiffusionConfig": {"num_steps": _TIMES, "relation_consistency": _FACTOR},
        "SamplerConfig": {
            **dict.fromkeys(("num_steps", "offset", "final_timestep"), _TIMES),
            **dict.fromkeys(("guidance_scale", "guidance_low", "guidance_high"), _FACTOR),
            "max_threshold": _FACTOR,
        },
        "CLIPConfig": {
            **dict.fromkeys(("text_width", "vision_width", "projection_dim"), _WIDTH),
            **dict.fromkeys(("text_layers", "vision_layers"), _DEPTH),
            **dict.fromkeys(("text_heads", "vision_heads"), _HEADS),
            **dict.fromkeys(("text_mlp_width", "vision_mlp_width"), _MLP_WIDTH),
            **dict.fromkeys(("vocab_size", "eot_token_id"), _VOCABULARY),
            "max_length": _TOKENS,
            **dict.fromkeys(("image_size", "patch_size"), _SIDE),
            "norm_eps": 1,
            "logit_scale_init": 100,
        },
        "T5Config": {
            "width": _WIDTH,
            "mlp_width": _MLP_WIDTH,
            "heads": _HEADS,
            "layers": _DEPTH,
            "head_dim": _WIDTH,
            "vocab_size": _VOCABULARY,
            "num_buckets": _WIDTH,
            "max_distance": 2**20,
            "norm_eps": 1,
        },
        "StageRecord": {"step": 10**12},
        "Export": {"format": _COUNT},
    }
)
"""By section: by field, the largest absolute value of the number, or of each one in a tuple.

What is said of a class holds for those derived from it.
"""

_KEY, _ENTRIES_KEY = "most", "most_entries"

MOST_LEVELS = 12
"""Entries of a tuple of numbers: each is of one level of a network."""

MOST_ENTRIES = 100_000
"""Entries of a tuple of texts, e.g. prompts."""

MOST_RUNS = 64
"""Entries of a section that names its entries, e.g. runs."""

MOST_CHARACTERS = 10_000
"""Of one text."""


def most(value: int, entries: int = MOST_LEVELS) -> dict[str, int]:
    """Returns the metadata of a field whose limit stands beside it, not in the table.

    entries: of a tuple.
    """
    return {_KEY: value, _ENTRIES_KEY: entries}


def check_limits(section: Any, where: str) -> None:
    """Raises ValueError naming the first field (as `where`.field) of a dataclass above its limit.

    Sections inside it are not looked into.
    """
    bases = reversed(type(section).__mro__)
    largest = {k: v for base in bases for k, v in LIMITS.get(base.__name__, {}).items()}
    largest |= {f.name: f.metadata[_KEY] for f in dataclasses.fields(section) if _KEY in f.metadata}
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{where}.{field.name}"
        if isinstance(value, dict) and len(value) > MOST_RUNS:
            raise ValueError(f"{key} has {len(value)} entries: must be at most {MOST_RUNS}")
        entries = field.metadata.get(_ENTRIES_KEY, MOST_LEVELS)
        if field.name in largest and isinstance(value, (list, tuple)) and len(value) > entries:
            raise ValueError(f"{key} has {len(value)} entries: must be at most {entries}")
        if isinstance(value, (list, tuple)) and len(value) > MOST_ENTRIES:
            raise ValueError(f"{key} has {len(value)} entries: must be at most {MOST_ENTRIES}")
        for item in value if isinstance(value, (list, tuple)) else [value]:
            _check_item(item, largest.get(field.name), key)


def check_text(text: str, where: str) -> None:
    """Raises ValueError naming `where` for a text that is too long, or holds NUL."""
    if len(text) > MOST_CHARACTERS or "\0" in text:
        raise ValueError(
            f"{where} = {text[:60]!r}...: must be at most {MOST_CHARACTERS} characters, no NUL"
        )


def _check_item(item: Any, largest: int | None, key: str) -> None:
    if isinstance(item, str):
        check_text(item, key)
    # Not "abs(item) > largest": NaN is above no number.
    if largest is not None and isinstance(item, (int, float)) and not abs(item) <= largest:
        raise ValueError(f"{key} = {item}: must be at most {largest:,}")
