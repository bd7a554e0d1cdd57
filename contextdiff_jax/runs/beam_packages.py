"""What Beam's workers are given to install, checked before anything is read; needs no Beam."""

import os
import zipfile
from collections.abc import Iterator, Sequence

import contextdiff_jax
from contextdiff_jax.system.suggestions import nearest_path

BUILD = "pip wheel --no-deps --wheel-dir=dist ."
# Beam's own flags of files to install, the second its older name; and those that replace them.
_PACKAGES = ("extra_package", "extra_packages")
_INSTEAD = ("sdk_container_image", "setup_file", "requirements_file")


def check_packages(runner: str, options: Sequence[str]) -> None:
    """Raises ValueError where a package is no wheel, is another version's, or is not given.

    options: Beam's own. A package of a bucket is left to Beam. Only Dataflow's workers are known to
    have nothing: those of other clusters may have this package already.
    """
    found = list(_values(options, _PACKAGES))
    for value in found:
        if "://" not in value:
            _check_wheel(value)
    if runner == "DataflowRunner" and not found and not list(_values(options, _INSTEAD)):
        raise ValueError(
            f"--runner={runner}: needs --extra_package=WHEEL after the --, as its workers have no "
            f"contextdiff_jax ({BUILD} builds the wheel)"
        )


def _check_wheel(path: str) -> None:
    if not os.path.exists(path):
        raise ValueError(f"--extra_package={path}: no such file{nearest_path(path)}")
    parts = os.path.basename(path).split("-")  # name, version and three tags, perhaps a build
    if len(parts) < 5 or not path.endswith(".whl") or not zipfile.is_zipfile(path):
        raise ValueError(f"--extra_package={path}: must be a wheel, as {BUILD} builds it")
    ours = contextdiff_jax.__version__
    if parts[0] == "contextdiff_jax" and parts[1] != ours:
        raise ValueError(f"--extra_package={path}: must be version {ours}, which runs here")


def _values(options: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Yields the values of these flags, written --NAME=VALUE or --NAME VALUE."""
    for place, option in enumerate(options):
        flag, equals, value = option.partition("=")
        if flag.startswith("--") and flag[2:] in names:
            yield value if equals else "".join(options[place + 1 : place + 2])
