"""Parameters by name, "denoiser/down_1/block_0/attn/norm/scale", and patterns that choose some.

A pattern is matched part by part, as file names are: `*`, `?` and `[ab]` stand for characters
within a part, `**` for any number of parts. What it matches is taken with all that is below.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from flax import traverse_util

from contextdiff_jax.system.suggestions import nearest


def by_name(tree: Any) -> dict[str, Any]:
    """Returns {name: leaf} of nested dicts; boxes of axis names are taken off."""
    return traverse_util.flatten_dict(nn.unbox(tree), sep="/")


def nested(leaves: Mapping[str, Any]) -> Any:
    """Returns the nested dicts of {name: leaf}."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def merged(tree: Any, other: Any) -> Any:
    """Returns nested dicts with the leaves of both, those of `other` where both have one."""
    if not (isinstance(tree, Mapping) and isinstance(other, Mapping)):
        return other
    both = {key: merged(tree[key], other[key]) if key in tree else other[key] for key in other}
    return {**tree, **both}


def without(tree: Any, other: Any) -> Any:
    """Returns nested dicts without the leaves that `other` has; a dict left empty is left out."""
    if not isinstance(other, Mapping):
        return {}
    found = {}
    for key, value in tree.items():
        left = value if key not in other else without(value, other[key])
        if key not in other or isinstance(left, Mapping) and left:
            found[key] = left
    return found


def like(tree: Any, other: Any) -> Any:
    """Returns the part of nested dicts that has the keys of `other`."""
    if not isinstance(other, Mapping):
        return tree
    return {key: like(tree[key], other[key]) for key in other}


def copied(
    target: Mapping[str, Any], taken: Mapping[str, Any], copies: Mapping[str, str]
) -> dict[str, Any]:
    """Returns what parameters that are not taken begin with as copies of those that are.

    target, taken: by name; copies: beginnings of names, {of the copy: of what it is a copy of}.
    Parameters of another shape than what they would copy are left out.
    """
    found = {}
    for name, leaf in target.items():
        for prefix, other in copies.items():
            source = taken.get(other + name.removeprefix(prefix))
            fits = name not in taken and name.startswith(prefix) and source is not None
            if fits and source.shape == leaf.shape:
                found[name] = source
    return found


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches a parameter's name, or something above it."""
    parts = name.split("/")
    return any(_matches(parts, pattern.split("/")) for pattern in patterns)


def check_patterns(patterns: Sequence[str], names: Iterable[str], where: str) -> None:
    """Raises ValueError naming the key `where` and the first pattern that matches nothing."""
    names = list(names)
    for pattern in patterns:
        if any(matches(name, [pattern]) for name in names):
            continue
        above = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, 99)}
        tops = ", ".join(sorted({name.split("/")[0] for name in names}))
        raise ValueError(
            f"{where} has {pattern!r}, which matches no parameter: must be {tops}, or a name below"
            f"{nearest(pattern, above)}"
        )


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], pattern[0]):
        return False
    return _matches(parts[1:], pattern[1:])
