"""The peer of both comparisons: diffusers' UNet2DConditionModel in torch, eager or compiled."""

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.turns import seconds_of
from benchmarks.workload import Workload
from contextdiff_jax.compilation.model_flops import valid_taps
from contextdiff_jax.encoders.diffusers_configs import unet_config_json

KINDS = ("deepfloyd_if", "stable_diffusion")
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # jax's name -> torch's
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def build(work: Workload, kind: str, width: int) -> UNet2DConditionModel:
    """Returns the network of `width` channels at the first level, otherwise of work's sizes.

    In latents it is the very network of work, whose width that is.
    """
    ours = work.unet
    if work.in_latents:
        return UNet2DConditionModel.from_config(unet_config_json(ours))
    levels = range(len(ours.multipliers))
    channels = tuple(width * multiplier for multiplier in ours.multipliers)
    attends = [level in ours.attention_levels for level in levels]
    shared = {
        "sample_size": work.resolution,
        "in_channels": ours.image_channels,
        "out_channels": ours.image_channels,
        "block_out_channels": channels,
        "layers_per_block": ours.num_blocks,
        "norm_num_groups": math.gcd(width, ours.groups),
    }
    if kind == "stable_diffusion":
        return UNet2DConditionModel(
            down_block_types=_names(attends, "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=_names(attends[::-1], "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=ours.text_dim,
            # diffusers takes a number of heads under this name.
            attention_head_dim=tuple(max(1, number // ours.head_dim) for number in channels),
            **shared,
        )
    text_width = ours.text_width or ours.text_dim
    return UNet2DConditionModel(
        down_block_types=_names(attends, "SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=_names(attends[::-1], "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=text_width,
        encoder_hid_dim=ours.text_dim,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=ours.text_dim // ours.head_dim,
        attention_head_dim=ours.head_dim,
        resnet_time_scale_shift="scale_shift",
        # IF's own network has GroupNorm(32) here, which not every text width can be split into.
        cross_attention_norm="group_norm" if text_width % 32 == 0 else None,
        **shared,
    )


def _names(attends: list[bool], attending: str, plain: str) -> tuple[str, ...]:
    return tuple(attending if attend else plain for attend in attends)


def count(work: Workload, kind: str, width: int) -> int:
    """Returns the number of parameters, allocating nothing."""
    with torch.device("meta"):
        return build(work, kind, width).num_parameters()


def matching_width(work: Workload, kind: str, parameters: int) -> int:
    """Returns the width whose number of parameters is nearest to `parameters`.

    Multiples of 8 only, besides our own width: others would keep torch from whole vectors.
    """
    ours = work.unet.channels[0]
    if work.in_latents:
        return ours
    guess = round(ours * (parameters / count(work, kind, ours)) ** 0.5 / 8)
    widths = [ours] + [8 * max(1, guess + offset) for offset in (-1, 0, 1)]
    return min(widths, key=lambda width: abs(count(work, kind, width) - parameters))


@dataclasses.dataclass
class TorchUNet:
    """The network with random parameters, and what it is measured at.

    kind: of KINDS. width: channels of the first level. backend: of torch.compile; None is eager.
    """

    work: Workload
    kind: str
    width: int
    backend: str | None = None

    @property
    def device(self) -> str:
        """torch's name of the device."""
        return DEVICES[self.work.device]

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return getattr(torch, self.work.dtype)

    def forward_flops(self) -> float:
        """Returns torch's count for one image and one call; multiply-adds of padding excluded."""
        unet = build(self.work, self.kind, self.width)
        images, text = (torch.from_numpy(array) for array in self.work.arrays(1))
        images = images.permute(0, 3, 1, 2)
        aten = torch.ops.aten
        custom = {
            aten.convolution: _convolution_flops,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        }
        with FlopCounterMode(display=False, custom_mapping=custom) as counter, torch.no_grad():
            unet(images, torch.ones(1), text)
        return counter.get_total_flops()

    def _inputs(self, batch: int, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
        images, text = (torch.from_numpy(a).to(self.device) for a in self.work.arrays(batch))
        images = images.permute(0, 3, 1, 2)
        return images.contiguous(memory_format=LAYOUTS[layout]), text

    def _network(self, layout: str) -> tuple[UNet2DConditionModel, Callable]:
        torch.manual_seed(self.work.seed)
        unet = build(self.work, self.kind, self.width).to(self.device)
        unet = unet.to(memory_format=LAYOUTS[layout])
        call = unet if self.backend is None else torch.compile(unet, backend=self.backend)
        return unet, call

    def forward(self, layout: str, batch: int) -> Callable[[], torch.Tensor]:
        """Returns a function that calls the network once, and waits for it."""
        unet, call = self._network(layout)
        torch.nn.Module.to(unet, self.dtype).eval()  # diffusers' own `to` warns of nothing
        images, text = (array.to(self.dtype) for array in self._inputs(batch, layout))
        times = torch.ones(batch, device=self.device)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            return call(images, times, text).sample.cpu()

        return run

    def training(self, layout: str) -> Callable[[], float]:
        """Returns a function that does one training step and returns its loss.

        Parameters and optimizer are float32; a 16-bit dtype is used through autocast.
        """
        work = self.work
        unet, call = self._network(layout)
        unet.train()
        optimizer = torch.optim.AdamW(
            unet.parameters(), work.learning_rate, weight_decay=0.0, fused=True
        )
        scheduler = self._scheduler()
        x0, text = self._inputs(work.batch_size, layout)
        null = torch.zeros_like(text)

        def run() -> float:
            t = torch.randint(0, work.train_times, x0.shape[:1], device=self.device)
            noise = torch.randn_like(x0)
            x_t = scheduler.add_noise(x0, noise, t)
            drop = torch.rand(x0.shape[0], device=self.device) < work.drop
            shown = torch.where(drop[:, None, None], null, text)
            mixed = self.dtype != torch.float32
            with torch.autocast(self.device, torch.bfloat16, enabled=mixed):
                predicted = call(x_t, t, shown).sample
            loss = F.mse_loss(predicted.float(), noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return run

    def sampling(self, layout: str, num_steps: int) -> Callable[[], torch.Tensor]:
        """Returns a function that draws guided samples with DDIM, one doubled batch per step.

        The parameters are cast to the dtype once; the sampler's arithmetic is float32.
        """
        work, dtype = self.work, self.dtype
        unet, call = self._network(layout)
        torch.nn.Module.to(unet, dtype).eval()  # diffusers' own `to` warns of nothing
        scheduler = self._scheduler()
        images, text = self._inputs(work.sample_batch_size, layout)
        doubled_text = torch.cat([torch.zeros_like(text), text]).to(dtype)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            scheduler.set_timesteps(num_steps, device=self.device)
            x = torch.randn_like(images)
            for t in scheduler.timesteps:
                both = torch.cat([x, x]).to(dtype)
                null, kept = call(both, t, doubled_text).sample.float().chunk(2)
                x = scheduler.step(null + work.guidance_scale * (kept - null), t, x).prev_sample
            return x.cpu()  # which waits for the device

        return run

    def _scheduler(self) -> DDIMScheduler:
        work = self.work
        return DDIMScheduler(
            work.train_times,
            *work.betas,
            beta_schedule=work.schedule,
            timestep_spacing="trailing",
            clip_sample=not work.in_latents,
        )


def faster_layout(make: Callable[[str], Callable[[], object]]) -> str:
    """Returns the memory layout in which make(layout)() is faster, after a warm-up each."""
    taken = {}
    for layout in LAYOUTS:
        run = make(layout)
        run()
        taken[layout] = min(seconds_of(run) for _ in range(3))
    shown = ", ".join(f"{layout} {seconds:.3f} s" for layout, seconds in taken.items())
    layout = min(taken, key=taken.get)
    print(f"  torch layouts: {shown}; taken: {layout}", flush=True)
    return layout


def _convolution_flops(
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, *, out_shape
) -> int:
    """One multiply-add (2) for every kernel position that lies in the image, as on our side."""
    axes = zip(x[2:], weight[2:], out_shape[2:], stride, padding, dilation, strict=True)
    taps = math.prod(
        valid_taps(size, kernel, out, step, pad, 1, spread)
        for size, kernel, out, step, pad, spread in axes
    )
    return 2 * x[0] * weight[0] * weight[1] * taps


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """Both matrix products of attention; torch's counter does not know the CPU's operator."""
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[2] * width
