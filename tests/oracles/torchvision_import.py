"""Lets torchvision be imported beside a torch that its compiled operators were not built for.

torch-fidelity, clean-fid and, where it is installed, transformers and diffusers import torchvision.
Its published wheels belong to torch's CUDA build; beside another build its operators do not load,
and its import then fails on the missing definitions of two, torchvision::nms and qnms.
Nothing here calls these operators, so definitions are all that is needed.
"""

import functools
import importlib.abc
import importlib.machinery
import pathlib
import sys

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        _define_missing_operators(pathlib.Path(self.path).parent)
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


@functools.cache
def make_importable() -> None:
    """From now on an import of torchvision first defines what its operators failed to define.

    Changes nothing where they load.
    """
    sys.meta_path.insert(0, _Finder())


@functools.cache
def _define_missing_operators(folder: pathlib.Path):
    """Returns the library that holds the definitions, to keep it alive, or None."""
    import torch

    try:
        torch.ops.load_library(next(folder.glob("_C.*"), None))
    except (OSError, TypeError):  # TypeError: there is no such file
        library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            library.define(name + _SIGNATURE)
        return library
    return None
