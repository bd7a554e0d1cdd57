"""ContextDiff in JAX/Flax: contextualized diffusion from one laptop core to TPU pods."""

__version__ = "0.1.0"
