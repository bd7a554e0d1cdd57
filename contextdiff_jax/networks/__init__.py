"""Flax Linen networks: the denoising U-Nets and the context-aware adapter."""
