"""The optimiser and its learning-rate schedule, through optax."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import optax

from contextdiff_jax.system.resumed import ADVISED, advised_if
from contextdiff_jax.training.shares import of_adapter

_LOWER = advised_if(lambda before, now: now <= before)
_HIGHER = advised_if(lambda before, now: now >= before)
# Without any clipping (0) the optimizer keeps a state of another form.
_LOWER_CLIPPING = advised_if(lambda before, now: 0 < now <= before)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser, its schedule, and the moving average of the weights.

    decay: "constant" after the warm-up, or "cosine" down to zero at the last step.
    clip_norm: bound on the gradient norm of each part (denoiser, adapter, conditions) by itself,
        so that an objective of one does not scale the updates of the other; 0 switches it off.
    adapter_rate: the adapter's learning rate over the denoiser's; 0 leaves it as it began.
    accumulation: micro-batches per step, each batch_size / accumulation examples.
    weight_decay: part of each weight, times the learning rate, that a step takes away.
    ema_decay: decay of the moving average; while n steps are few, (1 + n) / (10 + n) is used.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = dataclasses.field(default=1e-4, metadata=_LOWER)
    warmup_steps: int = dataclasses.field(default=10_000, metadata=_HIGHER)
    decay: Literal["constant", "cosine"] = "constant"
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = dataclasses.field(default=1.0, metadata=_LOWER_CLIPPING)
    adapter_rate: float = 1.0
    accumulation: int = dataclasses.field(default=1, metadata=ADVISED)
    ema_decay: float = 0.9999

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"{where}.learning_rate = {self.learning_rate}: must be above 0")
        for key in ("b1", "b2", "ema_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be in [0, 1)")
        lowest = {"warmup_steps": 0, "weight_decay": 0, "clip_norm": 0}
        lowest |= {"adapter_rate": 0, "accumulation": 1}
        for key, bound in lowest.items():
            if not bound <= getattr(self, key) < math.inf:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least {bound}")


def cosine_decay(learning_rate: float, warmup: int, ema: float) -> OptimizerConfig:
    """The small presets' optimiser: a warm-up, then a cosine down to zero."""
    return OptimizerConfig(
        learning_rate=learning_rate, warmup_steps=warmup, decay="cosine", ema_decay=ema
    )


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, or a cosine down to zero at `steps`."""
    warmup = min(config.warmup_steps, steps - 1)
    if config.decay == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)
    if not warmup:
        return optax.constant_schedule(config.learning_rate)
    return optax.linear_schedule(0.0, config.learning_rate, warmup)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Gradient clipping by each network's norm, then AdamW or Adafactor with the schedule.

    Either takes learning rate * weight_decay of every weight, beside what the gradient asks for
    (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).
    """
    schedule = learning_rate_schedule(config, steps)
    if config.name == "adafactor":
        update = optax.adafactor(
            schedule,
            min_dim_size_to_factor=128,
            multiply_by_parameter_scale=False,
            # The norm is clipped once, below, for both optimisers alike.
            clipping_threshold=None,
            momentum=config.b1 or None,
        )
    else:
        update = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    parts = [update]
    if config.name == "adafactor" and config.weight_decay:
        # Adafactor's own weight_decay_rate is the same at every learning rate, a warm-up's too.
        parts.append(optax.add_decayed_weights(lambda n: -config.weight_decay * schedule(n)))
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
        parts.insert(0, optax.stateless(functools.partial(_of_each, clip)))
    if config.adapter_rate != 1:
        parts.append(optax.stateless(functools.partial(_scale_adapter, config.adapter_rate)))
    return optax.chain(*parts) if len(parts) > 1 else update


def _of_each(clip: optax.GradientTransformation, updates: Any, _params: Any = None) -> Any:
    return {key: clip.update(tree, optax.EmptyState())[0] for key, tree in updates.items()}


def _scale_adapter(rate: float, updates: Any, _params: Any = None) -> Any:
    return jax.tree.map_with_path(
        lambda path, leaf: rate * leaf if of_adapter(path) else leaf, updates
    )
