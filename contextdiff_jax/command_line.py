"""Reads the command line; whatever is wrong with it is one sentence, with the nearest right word.

Flags are absl's, --config and what it overrides ml_collections'.
"""

import math
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from contextdiff_jax.arguments import existing_file
from contextdiff_jax.system.suggestions import nearest

flags.disclaim_key_flags()  # --help shows the flags defined here as those of the entry point


_PACKAGE = pathlib.Path(__file__).parent
# This project's configs: an installed wheel has them in the package, a clone beside it.
CONFIGS = _PACKAGE / "configs"
CONFIGS = CONFIGS if CONFIGS.is_dir() else _PACKAGE.parent / "configs"


class Mistake(flags.Error):
    """The command line cannot be used; says why in one sentence."""


def define_config(text: str) -> flags.FlagHolder[ConfigDict]:
    """Defines --config=FILE[:PRESET], whose keys are flags too: --config.seed=1."""
    try:
        holder = config_flags.DEFINE_config_file("config", None, text)
    except flags.CantOpenFlagFileError:  # --flagfile is read here already; `parse` refuses it
        return flags.DEFINE_string("config", None, text)
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigFile(flag.parser)
    return holder


def parse(argv: Sequence[str]) -> list[str]:
    """Sets all flags; returns the program's name and what is no flag.

    Raises Mistake for the first thing that is wrong.
    """
    try:
        rest = flags.FLAGS(list(argv))
    except Mistake:
        raise
    except flags.UnrecognizedFlagError as error:
        raise Mistake(_unknown_flag(error.flagname, argv)) from error
    except flags.IllegalFlagValueError as error:
        raise Mistake(_illegal_value(str(error))) from error
    except flags.Error as error:  # the order of flags, a file of flags that is not there
        raise Mistake(" ".join(str(error).split())) from error
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        # What ml_collections raises where an override does not fit its key.
        raise Mistake(f"--config and its keys: {_first_line(error)}") from error
    _check_values()
    return rest


def _check_values() -> None:
    """An empty name would be taken for the folder that the command is run in; NaN has no range."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and flag.value == "" != flag.default and not name.startswith("config."):
            raise Mistake(f"--{name}= is empty; give it a value, or leave it out")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise Mistake(f"--{name}={flag.value}: must be a finite number")


def _unknown_flag(name: str, argv: Sequence[str]) -> str:
    asked = next((word for word in argv if word.partition("=")[0].lstrip("-") == name), name)
    if name.startswith("config."):
        return f"{asked}: a key of --config=FILE[:PRESET], which is missing"
    known = [known for known in flags.FLAGS if not known.startswith("config.")]
    return f"{asked}: unknown flag{nearest(name, known, '--') or '; --help lists all'}"


def _illegal_value(message: str) -> str:
    """Returns absl's sentence about a flag in the words of this project's."""
    missing = re.findall(r"flag --(\S+?)=None: Flag --\1 must have a value", message)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return f"{' and '.join(f'--{name}' for name in missing)} {verb} missing; see --help"
    found = re.fullmatch(r"flag --([^=]+)=(.*?): (.*)", message, re.DOTALL)
    if not found:
        return " ".join(message.split())
    name, value, why = found.groups()
    parser = flags.FLAGS[name].parser if name in flags.FLAGS else None
    if isinstance(parser, (flags.IntegerParser, flags.FloatParser)):
        return f"--{name}={value}: must be {parser.syntactic_help}"
    if isinstance(parser, flags.EnumParser):
        choices = ", ".join(parser.enum_values)
        return f"--{name}={value}: must be one of {choices}{nearest(value, parser.enum_values)}"
    if isinstance(parser, flags.BooleanParser):
        return f"--{name}={value}: must be true or false"
    return f"--{name}={value}: {' '.join(why.split())}"


class _ConfigFile(flags.ArgumentParser):
    """Loads FILE[:PRESET]; a mistake in it, or in a key that is overridden, is one sentence.

    loader: ml_collections' own parser.
    """

    def __init__(self, loader: flags.ArgumentParser):
        self._loader = loader

    def parse(self, path: str) -> ConfigDict:
        """Returns the config of a file. Raises Mistake, which passes through absl unchanged."""
        asked = f"--config={path}"
        if not path:
            raise Mistake("--config= is empty; must be FILE or FILE:PRESET")
        path = _installed(path)
        try:
            existing_file(path.partition(":")[0], "config")
        except ValueError as error:
            raise Mistake(f"{error}{_near_installed(path)}") from error
        try:
            config = self._loader.parse(path)
            hasattr(config, "lock")  # raises what kept a file from being opened
        except Exception as error:  # a config is a program of the user's, it may raise anything
            raise Mistake(f"{asked}: {_reason(error, path)}") from error
        if not isinstance(config, ConfigDict):
            raise Mistake(
                f"{asked}: its get_config returns {type(config).__name__}, must be a ConfigDict "
                "(contextdiff_jax.config.to_config_dict makes one)"
            )
        for word in sys.argv[1:]:  # where ml_collections looks for them
            if keys := overridden_key(word):
                check_key(config, keys, word)
        return config


def overridden_key(word: str) -> list[str]:
    """Returns the parts of the key that a word, as --config.KEY=VALUE, overrides; else []."""
    found = re.fullmatch(r"--?(?:no)?config\.([^=\[]*)(=.*)?", word, re.DOTALL)
    return found[1].split(".") if found else []


def _installed(path: str) -> str:
    """Returns configs/NAME.py[:PRESET] as this project's, where the folder here has none."""
    file, colon, preset = path.partition(":")
    folder, name = pathlib.PurePath(file).parts[:-1], pathlib.PurePath(file).name
    installed = CONFIGS / name
    if folder == ("configs",) and installed.is_file() and not pathlib.Path(file).exists():
        return f"{installed}{colon}{preset}"
    return path


def _near_installed(path: str) -> str:
    """Returns the nearest of this project's configs where there is no folder configs/ here."""
    file = pathlib.PurePath(path.partition(":")[0])
    if file.parts[:-1] != ("configs",) or pathlib.Path("configs").exists():
        return ""
    return nearest(file.name, [each.name for each in CONFIGS.glob("*.py")], "configs/")


def check_key(config: ConfigDict, keys: Sequence[str], asked: str) -> None:
    """Raises Mistake where an overridden key is not in the config."""
    section, where = config, "config"
    for number, key in enumerate(keys, 1):
        if not isinstance(section, ConfigDict):
            raise Mistake(f"{asked}: {where} is {section!r}, which has no keys")
        if key not in section:
            known = ", ".join(sorted(section))
            near = nearest(key, section, f"{where}.")
            raise Mistake(f"{asked}: {where} has no key {key!r}, it has {known}{near}")
        where = f"{where}.{key}"
        if number < len(keys):
            section = section[key]
        elif isinstance(section[key], ConfigDict) and "={" not in asked:
            known = ", ".join(f"{where}.{name}" for name in sorted(section[key]))
            raise Mistake(f"{asked}: {where} is a section; set one of its keys: {known}")
        elif section.get_type(key) is type(None):
            raise Mistake(
                f"{asked}: {where} is None there; only a config file can change that, no flag"
            )


def _reason(error: BaseException, path: str) -> str:
    """Returns what a config file raised: its own sentence, or what went wrong at which line."""
    if isinstance(error, (TypeError, ValueError)) and error.__context__ is not None:
        error = error.__context__  # ml_collections wraps the traceback in another of its type
    if isinstance(error, ValueError):
        return _first_line(error)
    file = path.partition(":")[0]
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    line = f", line {lines[-1]}" if lines else ""
    return f"cannot be read as a config{line}: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
    return (text.strip() or type(error).__name__).split("\n")[0]
