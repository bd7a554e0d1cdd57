"""A folder of one single file as CompVis published its models: tiny, random, its sizes known."""

import contextlib

import diffusers
import pytest
from safetensors.numpy import save_file

from contextdiff_jax.encoders import single_file
from contextdiff_jax.encoders.diffusers_configs import read_stage_config, read_unet_config
from tests.encoders import compvis_layout
from tests.encoders.latent_oracles import KL, UNET_LDM, randomized


@contextlib.contextmanager
def known(folder, condition):
    """Writes U-Net, first stage and the tensors of `condition`; yields the single file's folder.

    Beside it are the same U-Net and first stage as diffusers writes them, unet/ and vae/.
    """
    unet = {**UNET_LDM, "in_channels": 3, "out_channels": 3, "layers_per_block": 1}
    unet = randomized(diffusers.UNet2DConditionModel(**unet), 4)
    stage = {**KL, "latent_channels": 3, "layers_per_block": 1}
    stage = randomized(diffusers.AutoencoderKL(**stage), 5)
    for name, model in (("unet", unet), ("vae", stage)):
        model.save_pretrained(folder / name)
    tensors = compvis_layout.unet_tensors(unet) | compvis_layout.stage_tensors(stage) | condition
    (folder / "single").mkdir()
    save_file(tensors, folder / "single/model.safetensors")
    sizes = read_unet_config(folder / "unet"), read_stage_config(folder / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single_file, "_UNETS", (lambda: sizes[0],))
        patch.setattr(single_file, "_STAGES", (lambda: sizes[1],))
        yield folder / "single"
