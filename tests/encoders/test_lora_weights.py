"""Low-rank updates in diffusers' names: against torch's W + BA, in every form that was written."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.latent_weights import abstract_unet, load_unet
from contextdiff_jax.encoders.lora_weights import load_lora, save_lora
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.lora import LoRAConfig, init_lora, updated_paths, with_lora

RANK = 2
SITE = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def unet(sd_folder):
    return load_unet(sd_folder / "unet")


@pytest.fixture(scope="module")
def updates(unet):
    """Updates of which no part is zero."""
    made = nn.unbox(init_lora(LoRAConfig(RANK), abstract_unet(unet[0]), jax.random.key(0)))
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.05, made)


@pytest.fixture
def file(unet, updates, tmp_path):
    """Written with the updates counting three times."""
    save_lora(tmp_path / "lora.safetensors", unet[0], updates, 3.0)
    return tmp_path / "lora.safetensors"


def rewritten(file, change, metadata=None):
    """The file with the names and values that change(name, array) returns."""
    tensors = dict(change(*item) for item in load_file(file).items())
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, file, metadata)
    return file


def assert_same_weights(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)


def test_the_network_is_that_of_torch_with_the_files_updates(unet, updates, file, sd_folder):
    """torch computes W + B A of the file itself; every site is in it."""
    import diffusers
    import torch

    config, weights = unet
    theirs = diffusers.UNet2DConditionModel.from_pretrained(sd_folder / "unet").eval()
    modules, tensors = dict(theirs.named_modules()), load_file(file)
    assert len(tensors) == 2 * len(updated_paths(weights)) == 2 * 8 * 7
    with torch.no_grad():
        for name, down in tensors.items():
            if ".lora_A." in name:
                up = tensors[name.replace("lora_A", "lora_B")]
                module = modules[name.removeprefix("unet.").removesuffix(".lora_A.weight")]
                module.weight += torch.from_numpy(up @ down)
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(1, 8, 8, 4)), rng.normal(size=(1, 5, 24))
    x, context = x.astype(np.float32), context.astype(np.float32)
    with torch.no_grad():
        out = theirs(
            torch.from_numpy(np.moveaxis(x, -1, 1)), torch.tensor([500]), torch.from_numpy(context)
        ).sample
    updated = with_lora(weights, updates, 3.0)
    ours = jax.jit(LatentUNet(config).apply)({"params": updated}, x, np.float32([501]), context)
    np.testing.assert_allclose(np.moveaxis(out.numpy(), 1, -1), ours, rtol=0, atol=2e-4)
    assert np.abs(out.numpy()).max() > 0.1


FORMS = {
    "today's": lambda name: name,
    "before peft": lambda name: name.replace(".lora_A.", ".lora.down.").replace(
        ".lora_B.", ".lora.up."
    ),
    "of processors": lambda name: (
        name.replace("to_out.0", "to_out")
        .replace(".to_", ".processor.to_")
        .replace(".lora_A.", "_lora.down.")
        .replace(".lora_B.", "_lora.up.")
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_names_is_read(form, unet, updates, file):
    rewritten(file, lambda name, array: (FORMS[form](name), array))
    found = with_lora(unet[1], load_lora(file, unet[0]), 1.0)
    assert_same_weights(found, with_lora(unet[1], updates, 3.0))


def test_what_a_file_says_that_updates_count_is_read(unet, updates, file):
    """alpha / rank: in the metadata of today's files, and as tensors in others."""
    settings = json.dumps({"unet.r": RANK, "unet.lora_alpha": 2 * RANK})
    rewritten(file, lambda *item: item, {"lora_adapter_metadata": settings})
    found = with_lora(unet[1], load_lora(file, unet[0]), 1.0)
    assert_same_weights(found, with_lora(unet[1], updates, 6.0))
    tensors = load_file(file)
    alphas = {n.replace("lora_A.weight", "alpha"): np.array(RANK / 2, np.float32) for n in tensors}
    save_file(tensors | {n: a for n, a in alphas.items() if n.endswith("alpha")}, file)
    found = with_lora(unet[1], load_lora(file, unet[0]), 1.0)
    assert_same_weights(found, with_lora(unet[1], updates, 1.5))


WRONG = {
    "of the text encoder": (
        lambda name, array: (name.replace("unet.", "text_encoder.", 1), array),
        "must be low-rank updates of the U-Net alone",
    ),
    "of no matrix": (
        lambda name, array: (name.replace("attn1.to_q", "attn7.to_q"), array),
        "attn7.to_q",
    ),
    "of another shape": (
        lambda name, array: (name, array[:, :-1] if f"{SITE}.lora_A" in name else array),
        f"the update of {SITE} is ",
    ),
    "not finite": (
        lambda name, array: (name, array * np.nan if f"{SITE}.lora_B" in name else array),
        f"{SITE}.lora_B of .* holds .* NaN",
    ),
    "of rank 0": (
        lambda name, array: (name, array[:0] if ".lora_A." in name else array[:, :0]),
        "is of rank 0, must be at least 1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_do_not_fit_are_refused_by_name(case, unet, file):
    change, cause = WRONG[case]
    with pytest.raises(ValueError, match=cause):
        load_lora(rewritten(file, change), unet[0])


def test_half_an_update_and_an_empty_file_are_refused(unet, file):
    tensors = load_file(file)
    tensors.pop(f"unet.{SITE}.lora_B.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"lacks lora_B of {SITE}"):
        load_lora(file, unet[0])
    save_file({}, file)
    with pytest.raises(ValueError, match="has no updates of a U-Net"):
        load_lora(file, unet[0])


def test_what_updates_count_must_be_one_finite_number(unet, file):
    tensors = load_file(file)
    save_file(tensors | {f"unet.{SITE}.alpha": np.ones(2, np.float32)}, file)
    with pytest.raises(ValueError, match=rf"{SITE}.alpha is \(2,\), must be one number"):
        load_lora(file, unet[0])
    settings = '{"unet.r": 2, "unet.lora_alpha": Infinity}'
    save_file(tensors, file, metadata={"lora_adapter_metadata": settings})
    with pytest.raises(ValueError, match="alpha / rank = inf: must be finite"):
        load_lora(file, unet[0])
