"""Parses the arguments of an entry point by its own flags, and checks its config; runs nothing.

python -m tests.docs.parsed main --config=configs/quickstart.py --workdir=runs/quickstart
"""

import dataclasses
import importlib
import sys

from absl import flags

from contextdiff_jax import command_line
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.generation.editing_config import read_editing_config
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.sampling.config import SamplerConfig

# Flags whose values are settings, [STAGE.]KEY=VALUE, and the section that has the keys.
SETTINGS = {"sampler": SamplerConfig, "data": DataConfig}


def main() -> None:
    """Ends with 0, or with 2 and a sentence."""
    entry, *arguments = sys.argv[1:]
    module = importlib.import_module(f"contextdiff_jax.{entry}")
    sys.argv = [f"{entry}.py", *arguments]  # where ml_collections looks for what is overridden
    try:
        rest = command_line.parse(sys.argv)
        check(module, rest[1:])
    except (ValueError, flags.Error) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def check(module, rest: list[str]) -> None:
    """Raises ValueError where the values of the flags cannot be meant."""
    if rest and module.__name__ != "contextdiff_jax.prepare":
        raise ValueError(f"{rest[0]!r}: unexpected argument")
    for name, section in SETTINGS.items():
        known = {field.name for field in dataclasses.fields(section)}
        for setting in flags.FLAGS[name].value if name in flags.FLAGS else ():
            key = setting.partition("=")[0].rpartition(".")[2]
            if key not in known:
                raise ValueError(f"--{name}={setting}: no such setting")
    if "what" in flags.FLAGS and isinstance(flags.FLAGS["what"].value, list):
        unknown = set(flags.FLAGS["what"].value) - set(module.PLANS)
        if unknown:
            raise ValueError(f"--what: no {unknown}")
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
        values = flags.FLAGS["config"].value
        if "runs" not in values:  # of an edit
            read_editing_config(values)
            return
        values.data_path = values.data_path or "somewhere"
        run = flags.FLAGS["run"].value if "run" in flags.FLAGS else None
        validate(from_config_dict(values), run, files=False, platform=None)


if __name__ == "__main__":
    main()
