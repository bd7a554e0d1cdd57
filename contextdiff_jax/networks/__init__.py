"""Flax Linen networks: denoising U-Nets, first stages of latents, the context-aware adapter."""
