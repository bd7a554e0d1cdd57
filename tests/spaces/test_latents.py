"""The space of latents: scaled once each way, sampled, tiled, normalized; TAEF2 on photographs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.encoders.latent_weights import first_stage, load_first_stage
from contextdiff_jax.networks.latent_config import (
    AutoencoderConfig,
    TinyAutoencoderConfig,
    taef2,
    taesd,
)
from contextdiff_jax.spaces.latents import LatentSpace, Normalization, scaled
from contextdiff_jax.spaces.pictures import to_uint8
from contextdiff_jax.spaces.tiling import decode_in_tiles
from tests.fixtures.parameters import initial

RNG = np.random.default_rng(6)
IMAGES = RNG.integers(0, 256, size=(2, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def kl(latent_oracles, tmp_path_factory):
    """A random AutoencoderKL of diffusers and the space around ours, its methods compiled."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("kl")
    model = latent_oracles.randomized(AutoencoderKL(**latent_oracles.KL))
    model.save_pretrained(folder)
    config, params = load_first_stage(folder)
    space = LatentSpace(first_stage(config), resolution=16)
    space.validate()
    return model, space, {"stage": params}


@pytest.fixture(scope="module")
def encode(kl):
    _, space, params = kl
    compiled = jax.jit(lambda params, images, key: space.bind(params).encode(images, key))
    return lambda images, key: np.asarray(compiled(params, images, key))


def test_latents_are_scaled_once_each_way(kl, latent_oracles):
    model, space, params = kl
    bound = space.bind(params)
    x0 = jax.jit(bound.encode)(IMAGES)
    assert x0.shape[1:] == space.shape == (4, 4, 4) and space.bounds is None
    assert space.image_shape == (16, 16, 3)
    pixels = latent_oracles.image(IMAGES.astype(np.float32) / 127.5 - 1)
    with latent_oracles.torch.no_grad():
        expected = model.encode(pixels).latent_dist.mode() * model.config.scaling_factor
        decoded = model.decode(expected / model.config.scaling_factor).sample
    np.testing.assert_allclose(x0, latent_oracles.array(expected), atol=5e-5)
    expected = latent_oracles.array(decoded).clip(-1, 1)
    assert (np.abs(expected) == 1).any() and (np.abs(expected) < 1).any()
    np.testing.assert_allclose(jax.jit(bound.decode)(x0), expected, atol=2e-3)
    np.testing.assert_allclose(jax.jit(bound.pixels)(x0), expected, atol=2e-3)


def test_the_gaussian_is_drawn_from_anew(kl, encode, latent_oracles):
    model, space, params = kl
    pixels = latent_oracles.image(IMAGES.astype(np.float32) / 127.5 - 1)
    with latent_oracles.torch.no_grad():
        gaussian = model.encode(pixels).latent_dist
    mean, std = (0.18215 * latent_oracles.array(x) for x in (gaussian.mean, gaussian.std))
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = np.stack([encode(IMAGES, key) for key in keys])
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * std.max() / 20)
    np.testing.assert_allclose(drawn.std(0), std, rtol=0.25, atol=1e-4)
    np.testing.assert_array_equal(encode(IMAGES, keys[0]), drawn[0])
    # Every number of a batch has noise of its own.
    noise = ((drawn[0] - mean) / std).reshape(-1)
    assert len(np.unique(noise.round(4))) > 0.9 * len(noise)


def own_statistics(latents):
    """The normalization under which these latents have mean 0 and deviation 1."""
    axes = tuple(range(latents.ndim - 1))
    mean, std = (of(latents, axes, dtype=np.float64).tolist() for of in (np.mean, np.std))
    return Normalization(tuple(mean), tuple(std))


def test_normalized_channels_have_mean_0_and_deviation_1():
    flat = (RNG.normal(3.0, 5.0, size=(360, 3)) * [1, 10, 0.1]).astype(np.float32)
    stage = first_stage(TinyAutoencoderConfig(latent_channels=3))
    space = LatentSpace(stage, 48, own_statistics(flat))
    x0 = np.asarray(space.normalized(flat))
    np.testing.assert_allclose([x0.mean(0), x0.std(0)], [[0] * 3, [1] * 3], atol=1e-5)
    np.testing.assert_allclose(space.raw(x0), flat, rtol=1e-5, atol=1e-5)


# ---- tiles


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((9, 14), 4, 2), ((9, 14), 4, 0), ((7, 3), 4, 3), ((8, 8), 8, 4), ((12, 5), 5, 1)],
)
def test_tiles_of_a_local_decoder_make_the_whole(size, tile, overlap):
    """A decoder whose pixels depend on one latent has no seams."""

    def decode(latents):
        large = jnp.repeat(jnp.repeat(latents, 2, 1), 2, 2)
        return jnp.concatenate([large, large.sum(-1, keepdims=True)], -1)

    latents = RNG.normal(size=(2, *size, 3)).astype(np.float32)
    got = decode_in_tiles(decode, latents, tile, overlap, reduction=2)
    np.testing.assert_allclose(got, decode(latents), rtol=1e-5, atol=1e-5)


def test_tiles_see_their_overlap():
    """A tile's border, where its neighbours are missing, weighs least; far from it all is exact."""

    def decode(latents):
        height, width = latents.shape[1:3]
        padded = jnp.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)))
        parts = (padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3))
        return sum(parts) / 9.0

    latents = np.ones((1, 12, 12, 1), np.float32)
    whole = np.asarray(decode(latents))
    errors = {
        overlap: np.abs(np.asarray(decode_in_tiles(decode, latents, 8, overlap, 1)) - whole)
        for overlap in (0, 4)
    }
    assert errors[0].max() > 0.3 and errors[4].max() < 0.1
    assert errors[4][0, :4, :4].max() == 0.0  # only the first tile's


def test_a_large_picture_is_decoded_in_tiles():
    config = TinyAutoencoderConfig(width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    stage = first_stage(config)
    params = {"stage": initial(lambda key: stage.init(key, jnp.zeros((1, 4, 4, 3)))["params"])}
    whole = LatentSpace(stage, 80).bind(params)
    tiled = dataclasses.replace(whole, tile=24, overlap=8)
    tiled.validate()
    x0 = RNG.normal(size=(1, 40, 30, 4)).astype(np.float32)
    got, expected = (np.asarray(jax.jit(space.decode)(x0)) for space in (tiled, whole))
    assert np.abs(got[:, :16, :10] - expected[:, :16, :10]).max() < 1e-5
    assert np.abs(got - expected).max() < 0.5 * expected.std()
    assert np.abs(got - expected).max() > 1e-5  # it was tiled


# ---- the cheap decoder


def test_cheap_pixels_are_of_latents_in_the_stage_s_units(kl):
    _, space, params = kl
    cheap = first_stage(
        TinyAutoencoderConfig(width=8, encoder_blocks=(1,) * 3, decoder_blocks=(1,) * 3)
    )
    cheap_params = initial(lambda key: cheap.init(key, jnp.zeros((1, 8, 8, 3)))["params"], seed=1)
    params = {**params, "cheap": cheap_params}
    normalization = Normalization((0.5,) * 4, (2.0,) * 4)
    x0 = RNG.normal(size=(1, 4, 4, 4)).astype(np.float32)
    expected = jax.jit(cheap.apply, static_argnames="method")(
        {"params": cheap_params}, x0, method="decode"
    )
    for normalized, given in ((None, x0), (normalization, (x0 / 0.18215 - 0.5) / 2.0)):
        bound = dataclasses.replace(space, cheap=cheap, normalization=normalized).bind(params)
        bound.validate()
        pixels = jax.jit(bound.pixels)
        np.testing.assert_allclose(pixels(given), np.clip(expected, -1, 1), atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: bound.pixels(x).sum()))(jnp.asarray(x0))
    assert np.abs(gradient).max() > 0


# ---- what is refused

SD = first_stage(AutoencoderConfig())


@pytest.mark.parametrize(
    ("space", "cause"),
    [
        (LatentSpace(SD, 500), "s.resolution = 500: must be a multiple of 8"),
        (LatentSpace(SD, 0), "s.resolution = 0: must be a multiple of 8"),
        (LatentSpace(SD, 512, scaled(3, 1.0)), "s.normalization.mean = (0.0, 0.0, 0.0): must be 4"),
        (
            LatentSpace(SD, 512, Normalization((0.0,) * 4, (1.0, 1.0, 1.0, 0.0))),
            "s.normalization.std = (1.0, 1.0, 1.0, 0.0): must be positive",
        ),
        (
            LatentSpace(SD, 512, Normalization((0.0, 0.0, 0.0, float("nan")), (1.0,) * 4)),
            "s.normalization.mean",
        ),
        (LatentSpace(first_stage(taef2()), 512, tile=64), "s.tile = 64: must be None for this"),
        (LatentSpace(SD, 512, tile=0), "s.tile = 0: must be at least 1, or None"),
        (LatentSpace(SD, 512, tile=16), "s.overlap = 16: must be from 0 to tile - 1 = 15"),
        (LatentSpace(SD, 512, cheap=first_stage(taef2())), "s.cheap has latent_channels = 32, the"),
    ],
)
def test_settings_that_cannot_work_are_named(space, cause):
    with pytest.raises(ValueError) as error:
        space.validate("s")
    assert cause in str(error.value)


def test_published_pairs_are_allowed():
    LatentSpace(SD, 512, cheap=first_stage(taesd()), tile=64).validate()
    LatentSpace(first_stage(taef2()), 256).validate()


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(1, 64, 60, 3\): must be \(B, H, W, 3\) .*of 8"):
        LatentSpace(SD, 64).encode(np.zeros((1, 64, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 16\): the last axis must be 4"):
        LatentSpace(SD, 64).decode(np.zeros((1, 8, 8, 16), np.float32))
    with pytest.raises(ValueError, match="no parameters: bind"):
        LatentSpace(SD, 64).encode(np.zeros((1, 64, 64, 3), np.uint8))


# ---- TAEF2


@pytest.fixture(scope="module")
def taef2_space(shared_data):
    config, params = load_first_stage(shared_data("weights/taef2"))
    assert config == taef2()
    return LatentSpace(first_stage(config), 256).bind({"stage": params})


@pytest.fixture(scope="module")
def photos(shared_data):
    paths = sorted(shared_data("photos").glob("*.jpg"))[::14]
    opened = [Image.open(path).convert("RGB") for path in paths]
    return np.stack([np.asarray(image.resize((256, 256), Image.LANCZOS)) for image in opened])


@pytest.fixture(scope="module")
def taef2_latents(taef2_space, photos):
    return np.asarray(jax.jit(taef2_space.encode)(photos))


def test_taef2_is_torch_s(taef2_space, photos, shared_data, latent_oracles):
    from tests.networks import taef2_torch

    folder = shared_data("weights/taef2")
    crop = photos[:1, :96, :128]
    pixels = latent_oracles.image(crop.astype(np.float32) / 255)
    expected = taef2_torch.run(folder / "taef2_encoder.safetensors", taef2_torch.ENCODER, pixels)
    latents = jax.jit(taef2_space.encode)(crop)
    np.testing.assert_allclose(latents, latent_oracles.array(expected), atol=2e-4)
    decoded = taef2_torch.run(folder / "taef2_decoder.safetensors", taef2_torch.DECODER, expected)
    got = (jax.jit(taef2_space.decode)(latents) + 1) / 2
    np.testing.assert_allclose(got, latent_oracles.array(decoded).clip(0, 1), atol=2e-4)


def test_taef2_decodes_photographs(taef2_space, taef2_latents, photos):
    decoded = to_uint8(jax.jit(taef2_space.decode)(taef2_latents))
    errors = np.square(decoded.astype(np.float64) - photos).mean((1, 2, 3))
    psnr = 10 * np.log10(255**2 / errors)
    assert taef2_latents.shape == (8, 32, 32, 32)
    assert 27 < psnr.mean() < 33 and psnr.min() > 22, psnr


def test_taef2_s_latents_are_normalized_by_what_was_measured(taef2_space, taef2_latents):
    space = dataclasses.replace(taef2_space, normalization=own_statistics(taef2_latents))
    x0 = np.asarray(space.normalized(taef2_latents))
    np.testing.assert_allclose(x0.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(x0.std((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(space.raw(x0), taef2_latents, atol=1e-4)
