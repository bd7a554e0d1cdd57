"""Sampling: guidance, the sampler loop, inversion, per-sample noise."""
