"""The peer of an edit of a clip: torch modules of diffusers and transformers, and their model.

The model is a folder in diffusers' layout with random weights, which both sides read. Its sizes are
those of clip_base.py, in which latents are the pixels.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import AutoencoderTiny, DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from etils import epath

from benchmarks.clip_base import BASE, CLIP, base_config, write_pixel_stage
from benchmarks.torch_unet import LAYOUTS
from contextdiff_jax.data.scenes_clips import make_clip
from contextdiff_jax.encoders.diffusers_configs import unet_config_json
from contextdiff_jax.encoders.published_configs import clip_text_config_json
from contextdiff_jax.encoders.tokenizers import train_tokenizer
from contextdiff_jax.runs.scheduler_config import FILE as SCHEDULER_FILE
from contextdiff_jax.runs.scheduler_config import scheduler_json

_CAPTIONS = 500  # that the tokenizer is trained on
# Of torch's own initialization of attention: what frames and words are attended to shows in frames.
_GAIN = 4.0


def write_model(folder: epath.Path, side: int, seed: int = 0) -> int:
    """Writes a folder of Stable Diffusion with random weights, for frames of side x side pixels.

    Returns the number of parameters of its U-Net.
    """
    config = base_config(folder / "vae", seed, side, steps=1)
    task, clip = config.runs[BASE].task, config.runs[CLIP].task
    captions = [make_clip("train", number).caption for number in range(_CAPTIONS)]
    tokenizer = train_tokenizer(
        captions, clip.tokenizer.vocab_size, clip.clip.max_length, folder / "tokenizer"
    )
    sizes = dataclasses.replace(
        clip.clip.text, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id
    )
    torch.manual_seed(seed)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip_text_config_json(sizes)))
    text.save_pretrained(folder / "text_encoder")
    unet = UNet2DConditionModel.from_config(unet_config_json(task.latent_unet))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".attn" in name and name.endswith("weight"):
                parameter.mul_(_GAIN)
    unet.save_pretrained(folder / "unet")
    write_pixel_stage(folder / "vae")
    # What inversion of v is the same for on both sides: no step from time 0.
    diffusion = dataclasses.replace(task.diffusion, schedule="scaled_linear")
    spaced = {"spacing": "leading", "offset": 1, "final_timestep": 1}
    sampler = dataclasses.replace(task.sampler, **spaced)
    (folder / "scheduler").mkdir()
    for name, values in (
        (f"scheduler/{SCHEDULER_FILE}", scheduler_json(diffusion, sampler)),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}),
    ):
        (folder / name).write_text(json.dumps(values, indent=1) + "\n")
    return unet.num_parameters()


class MidFrame(AttnProcessor2_0):
    """Self-attention whose keys and values are of the frame in the middle, as FateZero's.

    frames: of the clip; a batch has them one after the other, for each of its rows.
    """

    def __init__(self, frames: int):
        super().__init__()
        self.frames = frames

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns what the plain processor does, of the middle frame's tokens."""
        if encoder_hidden_states is None:
            rows = hidden_states.unflatten(0, (-1, self.frames))
            middle = (self.frames - 1) // 2
            encoder_hidden_states = rows[:, middle : middle + 1].expand_as(rows).flatten(0, 1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is edited, and how. frames: uint8 (F, H, W, 3). source, target: prompts."""

    frames: np.ndarray
    source: str
    target: str
    num_steps: int
    guidance_scale: float


class TorchEditor:
    """Inversion by DDIMInverseScheduler, then drawing by DDIMScheduler; all frames in a batch."""

    def __init__(
        self,
        folder: epath.Path,
        layout: str,
        backend: str | None = None,
        middle_of: int | None = None,
    ):
        """Reads the model.

        layout: of LAYOUTS. backend: of torch.compile; None is eager. middle_of: frames of the
        clip, where self-attention is to the one in the middle; None is to each frame itself.
        """
        plainly = {"low_cpu_mem_usage": False}  # without accelerate diffusers warns, and does so
        self.vae = AutoencoderTiny.from_pretrained(folder / "vae", **plainly).eval()
        self.text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **plainly).eval()
        unet = unet.to(memory_format=LAYOUTS[layout])
        if middle_of is not None:
            unet.set_attn_processor(MidFrame(middle_of))
        self.call: Callable = unet if backend is None else torch.compile(unet, backend=backend)
        self.inverse = DDIMInverseScheduler.from_pretrained(folder / "scheduler")
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")

    @torch.inference_mode()
    def edit(self, asked: Asked) -> np.ndarray:
        """Returns the edited frames, uint8 (F, H, W, 3)."""
        pixels = torch.from_numpy(asked.frames).permute(0, 3, 1, 2) / 127.5 - 1
        x = self.vae.encode(pixels).latents
        prompts = asked.source, asked.target, ""
        source, target, null = (self._tokens(prompt, len(x)) for prompt in prompts)
        self.inverse.set_timesteps(asked.num_steps)
        for t in self.inverse.timesteps:
            x = self.inverse.step(self.call(x, t, source).sample, t, x).prev_sample
        self.scheduler.set_timesteps(asked.num_steps)
        both = torch.cat([null, target])
        for t in self.scheduler.timesteps:
            unguided, kept = self.call(torch.cat([x, x]), t, both).sample.chunk(2)
            guided = unguided + asked.guidance_scale * (kept - unguided)
            x = self.scheduler.step(guided, t, x).prev_sample
        drawn = self.vae.decode(x).sample.permute(0, 2, 3, 1)
        return ((drawn + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    def _tokens(self, prompt: str, frames: int) -> torch.Tensor:
        told = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text(told.input_ids)[0].expand(frames, -1, -1)
