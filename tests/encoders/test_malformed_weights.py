"""Weights that strangers made: whatever is wrong, one sentence names the folder and the cause."""

import json
import os
import shutil
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.inception_weights import load_inception
from contextdiff_jax.encoders.weights import load_clip, load_clip_text, load_t5

WEIGHTS, CONFIG = "model.safetensors", "config.json"
KERNEL = "text_model.encoder.layers.1.mlp.fc1.weight"


@pytest.fixture
def copied(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "weights")


def refused(load, folder, cause):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(folder)
    text = str(error.value)
    assert str(folder) in text and cause in text
    assert "\n" not in text and len(text) < 1500


# ---- safetensors


def header(change):
    """Returns a change of a folder: of the JSON header of its safetensors file."""

    def spoil(folder):
        data = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + size])
        changed = json.dumps(change(content) or content).encode()
        data = struct.pack("<Q", len(changed)) + changed + data[8 + size :]
        (folder / WEIGHTS).write_bytes(data)

    return spoil


def field(**fields):
    return header(lambda content: content[KERNEL].update(fields))


def tensors(change):
    def spoil(folder):
        content = load_file(folder / WEIGHTS)
        save_file(change(content), folder / WEIGHTS)

    return spoil


def content(data):
    return lambda folder: (folder / WEIGHTS).write_bytes(data)


def as_dtype(dtype):
    return tensors(lambda found: found | {KERNEL: found[KERNEL].astype(dtype)})


def overlapping(found):
    other = "text_model.encoder.layers.0.mlp.fc1.weight"
    found[KERNEL]["data_offsets"] = found[other]["data_offsets"]


def fifo(name):
    def spoil(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def linked(name, target):
    def spoil(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


FILES = {
    "empty file": (content(b""), "is not a readable safetensors file"),
    "three bytes": (content(b"abc"), "is not a readable safetensors file"),
    "garbage": (content(b"\x80\x02}q" * 99), "is not a readable safetensors file"),
    "cut header": (lambda f: os.truncate(f / WEIGHTS, 100), "is not a readable safetensors file"),
    "cut data": (lambda f: os.truncate(f / WEIGHTS, 90_000), "is not a readable safetensors file"),
    "header beyond the file": (
        content(struct.pack("<Q", 2**62) + b"{}"),
        "is not a readable safetensors file",
    ),
    "header is a list": (content(struct.pack("<Q", 2) + b"[]"), "is not a readable safetensors"),
    "header is deep": (content(struct.pack("<Q", 90_000) + b"[" * 90_000), "is not a readable"),
    "overlapping": (header(overlapping), "is not a readable safetensors file"),
    "offsets beyond": (field(data_offsets=[0, 2**50]), "is not a readable safetensors file"),
    "negative offsets": (field(data_offsets=[-8, 0]), "is not a readable safetensors file"),
    "negative shape": (field(shape=[-80, 32]), "is not a readable safetensors file"),
    "huge shape": (field(shape=[2**40, 2**40]), "is not a readable safetensors file"),
    "unknown dtype": (field(dtype="F99"), "is not a readable safetensors file"),
    "turned shape": (field(shape=[32, 80]), f"{KERNEL} is (32, 80), must be (80, 32)"),
    "tensor of an escape code": (
        tensors(lambda found: found | {"\x1b[2Jx": np.zeros(1, np.float32)}),
        "has a tensor named '\\x1b[2Jx'",
    ),
    "no tensors": (tensors(lambda found: {}), "missing: "),
    "missing": (
        tensors(lambda found: {k: v for k, v in found.items() if k != KERNEL}),
        f"1 missing: {KERNEL}",
    ),
    "unexpected": (
        tensors(lambda found: found | {"more": np.zeros(2, np.float32)}),
        "1 unexpected: more",
    ),
    "no axes": (
        tensors(lambda found: found | {KERNEL: np.array(3, np.float32)}),
        f"{KERNEL} is (), must be",
    ),
    **{
        dtype: (as_dtype(dtype), f"cannot be read: {KERNEL} is {shown}")
        for dtype, shown in (("int8", "I8"), ("int64", "I64"), ("float64", "F64"), ("bool", "BOOL"))
    },
    "FIFO": (fifo(WEIGHTS), "has neither model.safetensors nor"),
    "device": (linked(WEIGHTS, "/dev/zero"), "has neither model.safetensors nor"),
    "link to itself": (linked(WEIGHTS, WEIGHTS), "has neither model.safetensors nor"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("load", [load_clip, load_clip_text])
def test_a_malformed_file_is_refused(load, kind, copied):
    change, cause = FILES[kind]
    change(copied)
    refused(load, copied, cause)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_tensor(dtype, value, copied):
    def spoil(found):
        array = found[KERNEL].astype(getattr(ml_dtypes, dtype, dtype))
        array[-1, -1] = value
        return found | {KERNEL: array}

    tensors(spoil)(copied)
    refused(load_clip, copied, f"{KERNEL} of ")
    refused(load_clip_text, copied, "holds 1 NaN or infinite values of 2560")


def test_the_largest_finite_values_are_read(copied):
    def change(found):
        array = found[KERNEL].astype(np.float16)
        array[0], array[1] = np.finfo(np.float16).max, np.finfo(np.float16).smallest_subnormal
        return found | {KERNEL: array}

    tensors(change)(copied)
    load_clip(copied)


def test_links_to_files_are_followed(copied, clip_folder, tmp_path):
    # As in the cache of Hugging Face's hub.
    for name in (WEIGHTS, CONFIG):
        linked(name, clip_folder / name)(copied)
    jax.tree.map(np.testing.assert_array_equal, load_clip(copied), load_clip(clip_folder))


# ---- shards


@pytest.mark.parametrize(
    ("index", "cause"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "holds a list: must hold a JSON object"),
        (b'{"weight_map": [1]}', "has no weight_map from tensors to files beside it"),
        (b'{"weight_map": {"x": 3}}', "has no weight_map from tensors to files beside it"),
        (
            b'{"weight_map": {"x": "../clip.safetensors"}}',
            "has no weight_map from tensors to files",
        ),
        (b'{"weight_map": {"x": "/etc/passwd"}}', "has no weight_map from tensors to files"),
        (b'{"weight_map": {"x": "%s.safetensors"}}' % (b"a" * 300), "has no weight_map from"),
        (b'{"weight_map": {"\\u001b[2J": "a.safetensors"}}', "cannot be printed"),
        (b'{"weight_map": {"x": "none.safetensors"}}', "lacks shards"),
        (b"{" * 99_999, "is not JSON"),
        (b'{"a":' * 99_999, "is not JSON that can be read: too deep"),
    ],
)
def test_a_malformed_index_is_refused(index, cause, copied):
    (copied / WEIGHTS).unlink()
    (copied / f"{WEIGHTS}.index.json").write_bytes(index)
    refused(load_clip, copied, cause)


# ---- config.json

JSON = {
    "empty": (b"", "is not JSON"),
    "garbage": (b"\xff\x00", "is not JSON"),
    "list": (b"[1]", "holds a list: must hold a JSON object"),
    "number": (b"7", "holds a int: must hold a JSON object"),
    "deep": (b'{"a":' * 99_999, "too deep"),
    "many digits": (b'{"a": %s}' % (b"9" * 9999), "is not JSON"),
    "NaN": (b'{"logit_scale_init_value": NaN}', "holds the number NaN, must be finite"),
    "infinite": (b'{"logit_scale_init_value": 1e999}', "holds the number 1e999, must be finite"),
    "no kind": (b"{}", "model_type = None: must be"),
    "kind is a list": (b'{"model_type": ["clip"]}', "model_type = ['clip']: must be"),
}


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("load", [load_clip, load_clip_text, load_t5])
def test_a_config_that_is_none_is_refused(load, kind, clip_folder, t5_folder, tmp_path):
    source = t5_folder if load is load_t5 else clip_folder
    folder = shutil.copytree(source, tmp_path / "weights")
    data, cause = JSON[kind]
    (folder / CONFIG).write_bytes(data)
    refused(load, folder, cause)


@pytest.mark.parametrize("change", [fifo(CONFIG), linked(CONFIG, "/dev/zero")])
def test_a_config_that_is_no_file_is_refused(change, copied):
    change(copied)
    refused(load_clip, copied, "config.json' is no regular file")


HUGE = 2**40
CLIP_VALUES = [
    ("text_config", "num_hidden_layers", 10**7, "text_layers = 10000000: must be at most 256"),
    ("text_config", "num_hidden_layers", 200, "missing: text_model.encoder.layers.10.layer_norm1"),
    ("text_config", "num_hidden_layers", 0, "text_layers = 0: must be at least 1"),
    ("text_config", "num_hidden_layers", -3, "text_layers = -3: must be at least 1"),
    ("text_config", "num_hidden_layers", "3", "num_hidden_layers = '3': must be int, is str"),
    ("text_config", "num_hidden_layers", 3.0, "num_hidden_layers = 3.0: must be int, is float"),
    ("text_config", "num_hidden_layers", True, "num_hidden_layers = True: must be int, is bool"),
    ("text_config", "num_hidden_layers", None, "num_hidden_layers = None: must be int"),
    ("text_config", "vocab_size", HUGE, f"vocab_size = {HUGE}: must be at most 268,435,456"),
    ("text_config", "vocab_size", 10**6, "token_embedding.weight is (99, 32), must be (1000000, 3"),
    ("text_config", "hidden_size", HUGE, f"text_width = {HUGE}: must be at most 16,384"),
    ("text_config", "hidden_size", 8192, "is (99, 32), must be (99, 8192)"),
    ("text_config", "num_attention_heads", 5, "text_heads = 5: must divide the width 32"),
    ("text_config", "max_position_embeddings", HUGE, "max_length = 1099511627776: must be at most"),
    ("text_config", "intermediate_size", [80], "intermediate_size = [80]: must be int, is list"),
    ("text_config", "hidden_act", "relu", "activation = 'relu': must be one of"),
    ("text_config", "hidden_act", ["gelu"], "hidden_act = ['gelu']: must be str, is list"),
    ("text_config", "layer_norm_eps", "small", "layer_norm_eps = 'small': must be float, is str"),
    ("text_config", "layer_norm_eps", -1.0, "norm_eps = -1.0: must be at least 0"),
    ("text_config", "eos_token_id", 98.5, "eos_token_id = 98.5: must be int"),
    ("text_config", "eos_token_id", -5, "eot_token_id = -5: must be at least 0"),
    ("text_config", "eos_token_id", 99, "eot_token_id = 99: must be below vocab_size 99"),
    ("vision_config", "image_size", 2**30, "image_size = 1073741824: must be at most 4,096"),
    ("vision_config", "image_size", 4096, "is (10, 48), must be (262145, 48)"),
    ("vision_config", "patch_size", 0, "patch_size = 0: must be at least 1"),
    ("vision_config", "num_channels", "x" * 9999, "xxx...: must be 3"),
    (None, "text_config", [3], "text_config = [3]: must be an object"),
    (None, "vision_config", "large", "vision_config = 'large': must be an object"),
    (None, "projection_dim", -1, "projection_dim = -1: must be at least 1"),
    (None, "logit_scale_init_value", 1000, "logit_scale_init = 1000.0: must be at most 100"),
]


@pytest.mark.parametrize(("section", "key", "value", "cause"), CLIP_VALUES)
def test_a_config_of_other_sizes_is_refused(section, key, value, cause, copied):
    values = json.loads((copied / CONFIG).read_text())
    part = values[section] if section else values
    part[key] = value
    if key.startswith(("hidden_act", "layer_norm")):
        values["vision_config"][key] = value
    (copied / CONFIG).write_text(json.dumps(values))
    refused(load_clip, copied, cause)


T5_VALUES = [
    ("num_layers", 10**7, "layers = 10000000: must be at most 256"),
    ("num_layers", -1, "layers = -1: must be at least 1"),
    ("num_layers", "many", "num_layers = 'many': must be int, is str"),
    ("vocab_size", HUGE, f"vocab_size = {HUGE}: must be at most"),
    ("d_model", 0, "width = 0: must be at least 1"),
    ("d_ff", 2**17, "must be (131072, 32)"),
    ("relative_attention_num_buckets", 7, "num_buckets = 7: must be an even number from 4 on"),
    ("relative_attention_max_distance", 8, "max_distance = 8: must be above a quarter of"),
    ("layer_norm_epsilon", "0", "layer_norm_epsilon = '0': must be float, is str"),
    ("feed_forward_proj", 3, "feed_forward_proj = 3: must be 'gated-gelu'"),
]


@pytest.mark.parametrize(("key", "value", "cause"), T5_VALUES)
def test_a_t5_config_of_other_sizes_is_refused(key, value, cause, t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "weights")
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | {key: value}))
    refused(load_t5, folder, cause)


@pytest.mark.parametrize("name", ["shared.weight", "encoder.final_layer_norm.weight"])
def test_a_t5_value_that_is_not_finite_is_refused(name, t5_folder, tmp_path):
    folder = shutil.copytree(t5_folder, tmp_path / "weights")
    tensors(lambda found: found | {name: np.full_like(found[name], np.nan)})(folder)
    refused(load_t5, folder, f"{name} of ")


# ---- OpenAI's names, whose sizes are read from shapes


@pytest.mark.parametrize(
    ("name", "shape", "cause"),
    [
        ("visual.conv1.weight", (3, 3), "is (3, 3), must have 4 axes"),
        ("visual.positional_embedding", (0, 4), "is (0, 4), must have 2 axes, none empty"),
        ("text_projection", (), "is (), must have 2 axes"),
        ("text_projection", (32, 20), "text_heads = 0: must be at least 1"),
        ("token_embedding.weight", (5,), "is (5,), must have 2 axes"),
        ("transformer.resblocks.0.attn.in_proj_weight", (), "unexpected: transformer.resblocks.0"),
        ("transformer.resblocks.0.attn.in_proj_weight", (7, 64), "unexpected: transformer.resb"),
    ],
)
def test_shapes_that_are_no_sizes_are_refused(name, shape, cause, tmp_path):
    shapes = {
        "visual.conv1.weight": (64, 3, 8, 8),
        "visual.positional_embedding": (10, 64),
        "text_projection": (64, 20),
        "positional_embedding": (12, 64),
        "token_embedding.weight": (99, 64),
        "transformer.resblocks.0.attn.in_proj_weight": (192, 64),
        "visual.transformer.resblocks.0.attn.in_proj_weight": (192, 64),
    }
    arrays = {key: np.zeros(size, np.float32) for key, size in (shapes | {name: shape}).items()}
    save_file(arrays, tmp_path / WEIGHTS)
    refused(load_clip, tmp_path, cause)


# ---- Inception


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({}, "missing: "),
        ({"conv.kernel": np.zeros(3, np.float32)}, "conv.kernel is (3,), must be (3, 3, 3, 32)"),
    ],
)
def test_malformed_inception_weights_are_refused(arrays, cause, tmp_path):
    save_file(arrays, tmp_path / "inception.safetensors")
    refused(lambda path: load_inception(path / "inception.safetensors", ["64"]), tmp_path, cause)
    fifo("inception.safetensors")(tmp_path)
    refused(lambda path: load_inception(path / "inception.safetensors"), tmp_path, "do not exist")
