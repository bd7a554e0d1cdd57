"""A package, so that `tests` is this folder: torch-fidelity installs one of that name too."""
