"""Configs by name, on a benchmark's command line."""

import importlib

from contextdiff_jax.config import Config, from_config_dict


def load_config(name: str) -> Config:
    """Returns configs/NAME.py of "NAME" or "NAME:PRESET"."""
    name, _, preset = name.partition(":")
    return from_config_dict(importlib.import_module(f"configs.{name}").get_config(preset))
