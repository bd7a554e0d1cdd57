"""The U-Net of clips against torch modules of the papers, and what must not change."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.diffusers_names import unet_table
from contextdiff_jax.encoders.latent_weights import STEM, abstract_unet, load_unet
from contextdiff_jax.encoders.video_weights import fresh_parts, load_video_unet
from contextdiff_jax.networks import video_config
from contextdiff_jax.networks.attention_fusion import Fusion
from contextdiff_jax.networks.latent_config import stable_diffusion_1
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.video_config import VideoConfig, frame_table
from contextdiff_jax.training.parameter_names import by_name, matches

FRAMES, CLIPS = 8, 2
RNG = np.random.default_rng(5)
X = RNG.normal(size=(FRAMES, CLIPS, 8, 4, 4)).astype(np.float32)  # not square
CONTEXT = RNG.normal(size=(CLIPS, 5, 24)).astype(np.float32)
TIMES = np.array([3.0, 700.0], np.float32)

# ours, the torch module's settings, and the class that the originals write.
FAMILIES = {
    "tune_a_video": (
        VideoConfig(FRAMES, ("first", "previous")),
        {"keys": [0, -1], "temporal": "after", "names": ("norm_temp", "attn_temp")},
        ("UNet3DConditionModel", "3D"),
    ),
    "fatezero": (
        VideoConfig(FRAMES, ("mid",), temporal_conv="lora", rank=20),
        {"keys": ["mid"], "temporal": "after", "names": ("norm_temporal", "attn_temporal")}
        | {"conv": 20},
        ("UNetPseudo3DConditionModel", "Pseudo3D"),
    ),
    "control_video": (
        VideoConfig(FRAMES, ("first",), temporal="parallel"),
        {"keys": [0], "temporal": "parallel"},
        ("UNet3DConditionModel", "3D"),
    ),
    "full convolutions": (
        VideoConfig(FRAMES, ("-2", "last"), temporal=None, temporal_conv="full", norm="frame"),
        {"keys": [-2, "last"], "conv": "full", "joint": False},
        ("UNetPseudo3DConditionModel", "Pseudo3D"),
    ),
}


def table_of(keys):
    """By hand: 0 is the first frame, negative numbers are relative."""
    named = {0: lambda f: 0, "mid": lambda f: 3, "last": lambda f: 7}
    return [[named.get(k, lambda f, k=k: max(f + k, 0))(f) for k in keys] for f in range(FRAMES)]


def folded(x):
    return x.reshape(-1, *x.shape[2:])


def inputs(frames=FRAMES):
    """Of our module: frames first."""
    each = (np.tile(TIMES, frames), np.tile(CONTEXT, (frames, 1, 1)))
    return folded(X[:frames]), *each


SLOW = ("control_video", "full convolutions")  # each compiles a network of its own


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FAMILIES],
)
def family(request, latent_oracles, tmp_path_factory):
    """A random network of torch, its folder, ours, and its compiled function of parameters."""
    from diffusers import UNet2DConditionModel

    from tests.networks import inflated_torch

    video, settings, (kind, blocks) = FAMILIES[request.param]
    settings = dict(settings)
    table = table_of(settings.pop("keys"))
    model = UNet2DConditionModel(**latent_oracles.UNET_1 | {"layers_per_block": 1})
    model = latent_oracles.randomized(inflated_torch.inflate(model, table, **settings))
    folder = tmp_path_factory.mktemp("unet")
    model.save_pretrained(folder)
    text = (folder / "config.json").read_text().replace("Block2D", f"Block{blocks}")
    text = text.replace('"UNet2DConditionModel"', json.dumps(kind))
    (folder / "config.json").write_text(text.replace("UNetMidBlock2D", f"UNetMidBlock{blocks}"))
    config, params = load_video_unet(folder, video)
    run = jax.jit(
        lambda params: LatentUNet(config, video=video).apply({"params": params}, *inputs())
    )
    return model, folder, video, params, run


def test_it_is_the_papers_network(family, latent_oracles):
    model, _, _, params, run = family
    torch = latent_oracles.torch
    clips = X.transpose(1, 0, 4, 2, 3).reshape(CLIPS * FRAMES, 4, 8, 4)
    times = torch.from_numpy(TIMES - 1).repeat_interleave(FRAMES)
    context = torch.from_numpy(CONTEXT).repeat_interleave(FRAMES, 0)
    with torch.no_grad():
        theirs = model(torch.from_numpy(clips.copy()), times, context).sample.numpy()
    theirs = theirs.reshape(CLIPS, FRAMES, 4, 8, 4).transpose(1, 0, 3, 4, 2)
    np.testing.assert_allclose(
        np.asarray(run(params)).reshape(X.shape), theirs, atol=2e-4 * np.abs(theirs).max()
    )


@pytest.mark.slow
def test_every_temporal_tensor_is_read(family):
    _, folder, _, params, run = family
    names = load_file(folder / f"{STEM}.safetensors")
    temporal = [name for name in names if "temp" in name]
    assert temporal
    base, flat = np.asarray(run(params)), by_name(params)
    changed = [path for path in flat if "temporal" in path]
    assert len(changed) == len(temporal)
    for path in changed:
        other = flat | {path: flat[path] + RNG.normal(size=flat[path].shape).astype(np.float32)}
        result = run(traverse_util.unflatten_dict(other, sep="/"))
        assert np.abs(np.asarray(result) - base).max() > 1e-3, path


def test_a_part_of_the_temporal_tensors_is_refused(family, tmp_path):
    _, folder, video, _, _ = family
    tensors = load_file(folder / f"{STEM}.safetensors")
    missing = next(name for name in tensors if "temp" in name)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({k: v for k, v in tensors.items() if k != missing}, tmp_path / f"{STEM}.safetensors")
    with pytest.raises(ValueError, match="of the temporal .* 1 of .* are missing"):
        load_video_unet(tmp_path, video)


@pytest.fixture(scope="module")
def flat_network(latent_oracles, tmp_path_factory):
    """The folder, sizes and parameters of a random 2-D network."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("flat")
    model = UNet2DConditionModel(**latent_oracles.UNET_1 | {"layers_per_block": 1})
    latent_oracles.randomized(model).save_pretrained(folder)
    return folder, *load_unet(folder)


@functools.cache
def compiled(config, video):
    return jax.jit(LatentUNet(config, video=video).apply)


def apply(config, video, params, *given):
    return np.asarray(compiled(config, video)({"params": params}, *given))


@pytest.mark.slow
def test_published_weights_begin_as_the_two_dimensional_network(flat_network):
    """All temporal parts are fresh: the identity, biases too. Only attention between frames is
    left, and norms over them: without these, and for one frame or equal frames, nothing is."""
    folder, config, params = flat_network
    alone = VideoConfig(FRAMES, (), temporal_conv="lora", rank=20, norm="frame")
    flat = apply(config, None, params, *inputs())
    begun = fresh_parts(params, config, alone)
    np.testing.assert_allclose(apply(config, alone, begun, *inputs()), flat, atol=1e-4)
    still = np.repeat(X[:1], FRAMES, axis=0)
    given = (folded(still), *inputs()[1:])
    video = VideoConfig(FRAMES, ("previous", "first"), temporal_conv="full")
    inflated = load_video_unet(folder, video)[1]
    got = apply(config, video, inflated, *given)
    np.testing.assert_allclose(got, apply(config, None, params, *given), atol=2e-4)
    assert np.abs(apply(config, video, inflated, *inputs()) - flat).max() > 0.1
    single = dataclasses.replace(video, frames=1)
    np.testing.assert_allclose(apply(config, single, inflated, *inputs(1)), flat[:CLIPS], atol=2e-4)


def test_the_edits_rows_alone_take_attention_over(flat_network):
    """Rows 0 and 2 of each frame are as they were; row 1 too where it is the source itself, and
    outside the steps in which something is taken over."""
    _, config, params = flat_network
    x = RNG.normal(size=(2, 3, 8, 4, 4)).astype(np.float32)
    context = np.repeat(RNG.normal(size=(1, 3, 5, 24)).astype(np.float32), 2, axis=0)
    run = jax.jit(
        lambda x, context, fusion: (
            LatentUNet(config)
            .apply({"params": params}, folded(x), jnp.full(6, 9.0), folded(context), fusion=fusion)
            .reshape(x.shape)
        )
    )
    fusion = Fusion(
        *(jnp.array(True), None, jnp.float32(0.3)),
        *(jnp.eye(5), jnp.ones(5), jnp.ones(5), jnp.ones(5)),
        **{"rows": 3, "side": (8, 4), "finest": 1},
    )
    off = dataclasses.replace(fusion, self_on=jnp.array(False), weight=jnp.zeros(5))
    plain, fused = (np.asarray(run(x, context, each)) for each in (off, fusion))
    expected = apply(config, None, params, folded(x), np.full(6, 9.0, np.float32), folded(context))
    np.testing.assert_allclose(plain, expected.reshape(x.shape), atol=1e-4)
    np.testing.assert_allclose(fused[:, [0, 2]], plain[:, [0, 2]], atol=1e-4)
    assert np.abs(fused[:, 1] - plain[:, 1]).max() > 0.1
    x[:, 1], context[:, 1] = x[:, 0], context[:, 0]
    same = np.asarray(run(x, context, fusion))
    np.testing.assert_allclose(same[:, 1], same[:, 0], atol=1e-4)


@pytest.mark.slow
def test_the_originals_bias_is_not_the_identity(flat_network):
    _, config, params = flat_network
    name = "middle_attn/block_0/temporal/out/bias"
    drawn, zero = (
        by_name(fresh_parts(params, config, VideoConfig(zero_bias=zero)))[name]
        for zero in (False, True)
    )
    assert 0.5 * 32**-0.5 < np.abs(drawn).max() <= 32**-0.5
    assert not np.any(zero)


def test_frames_in_another_order_give_the_same_in_that_order(family):
    _, _, video, params, _ = family
    if video.temporal != "after_feedforward" or video.temporal_conv is not None:
        pytest.skip("a convolution over time knows the order; one of the others is enough")
    config = load_config(family)
    video = dataclasses.replace(video, keys_from=("first",))
    order = [0, 5, 2, 7, 1, 3, 6, 4]  # the first stays
    straight = apply(config, video, params, *inputs()).reshape(X.shape)
    permuted = apply(config, video, params, folded(X[order]), *inputs()[1:]).reshape(X.shape)
    np.testing.assert_allclose(permuted, straight[order], atol=1e-3 * np.abs(straight).max())


def load_config(family):
    return load_video_unet(family[1], family[2])[0]


@pytest.mark.parametrize(
    ("keys", "table"),
    [
        (("previous", "first"), [[0, 0], [0, 0], [1, 0], [2, 0]]),
        (("mid", "last", "1"), [[1, 3, 1], [1, 3, 2], [1, 3, 3], [1, 3, 3]]),
        (("-2", "-1", "0"), [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]),
    ],
)
def test_frames_attended(keys, table):
    assert frame_table(keys, 4).tolist() == table


def test_narrow_blocks_attend_to_their_frame():
    video = VideoConfig(least_width=640)
    assert [video.attended(width) for width in (320, 640)] == [(), ("previous", "first")]


@pytest.mark.parametrize(
    "value", [{"keys_from": ("middle",)}, {"temporal": "after"}, {"frames": 0}]
)
def test_what_cannot_work_is_refused(value):
    [key] = value
    with pytest.raises(ValueError, match=rf"^video\.{key}"):
        VideoConfig(**value).validate()


PATTERNS = {  # trained by the originals, in millions
    "tune_a_video": (("**/self/query", "**/cross/query", "**/temporal"), 798, 74.35),
    "fatezero": (("**/temporal", "**/query", "**/*conv*_temporal", "head_temporal"), 902, 118.6),
    "control_video": (("**/self/out", "**/temporal", "**/temporal_out"), None, 66.18),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_sizes_are_the_published_ones(name):
    config, video = stable_diffusion_1(), getattr(video_config, name)()
    abstract = abstract_unet(config, video)
    patterns, tensors, millions = PATTERNS[name]
    table = unet_table(abstract, len(config.channels))
    assert len({entry.name for entry in table}) == len(table)
    assert tensors in (None, len(table))
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in by_name(abstract).items()}
    trained = sum(size for path, size in sizes.items() if matches(path, patterns)) / 1e6
    assert trained == pytest.approx(millions, abs=0.06)
    if name == "tune_a_video":
        assert sum(sizes.values()) / 1e6 == pytest.approx(909.1, abs=0.05)


def test_joint_norm_is_torchs_on_five_axes():
    from contextdiff_jax.networks.layers import GroupNorm

    torch = pytest.importorskip("torch")
    x = (
        RNG.normal(size=(3, 2, 4, 5, 8)).astype(np.float32)
        + np.arange(3)[:, None, None, None, None]
    )
    module = GroupNorm(4, frames=3)
    params = module.init(jax.random.key(0), jnp.zeros((6, 4, 5, 8)))
    got = module.apply(params, x.reshape(6, 4, 5, 8)).reshape(x.shape)
    theirs = torch.nn.functional.group_norm(torch.from_numpy(x.transpose(1, 4, 0, 2, 3).copy()), 4)
    np.testing.assert_allclose(got, theirs.numpy().transpose(2, 0, 3, 4, 1), atol=1e-5)
