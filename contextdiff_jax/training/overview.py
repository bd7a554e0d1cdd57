"""Which parameters a run trains: every one in a table, and a line for each network."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from clu import parameter_overview

_NAMED = 3  # parts of a network that its line names


def table(params: Mapping[str, Any]) -> str:
    """Returns a table of hundreds of lines: name, shape, type and size of every parameter."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def summary(params: Mapping[str, Any]) -> list[str]:
    """Returns a line for each network: its number of parameters, and where most of them are.

    params: {network: {part: tree of arrays}}.
    """
    return [_line(network, parts) for network, parts in params.items()]


def _line(network: str, parts: Any) -> str:
    total = _count(parts)
    line = f"{network:<12} {total:>14,} parameters"
    sizes = {part: _count(tree) for part, tree in parts.items()} if isinstance(parts, dict) else {}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:_NAMED]
    shares = [f"{part} {100 * sizes[part] / total:.0f} %" for part in largest if total]
    return f"{line}: {', '.join(shares)}" if shares else line


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
