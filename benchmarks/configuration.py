"""Configs by name, on a benchmark's command line."""

import argparse
import functools
import importlib
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from contextdiff_jax.command_line import check_key, overridden_key
from contextdiff_jax.config import Config, from_config_dict


def load_config(name: str, changes: Sequence[str] = ()) -> Config:
    """Returns configs/NAME.py of "NAME" or "NAME:PRESET".

    changes: keys of it with other values, --config.KEY=VALUE as on the command line of `main`.
    Raises ValueError for a key that it does not have, or a value that does not fit.
    """
    name, _, preset = name.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(preset)
    return from_config_dict(functools.reduce(_changed, changes, config))


def _changed(config: ConfigDict, change: str) -> ConfigDict:
    try:
        check_key(config, overridden_key(change), change)
        values, argv = flags.FlagValues(), ["", change]
        holder = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        why = " ".join(str(error).split()).removeprefix(f"flag {change}: ")
        raise ValueError(why if why.startswith(change) else f"{change}: {why}") from error
    return holder.value


def parse_with_changes(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Reads the command line; returns the changes of the config, --config.KEY=VALUE, beside it."""
    args, rest = parser.parse_known_args(argv)
    for word in rest:
        if not overridden_key(word):
            parser.error(f"unrecognized argument {word}: keys are --config.KEY=VALUE")
    return args, rest
