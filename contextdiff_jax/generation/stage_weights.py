"""The weights of an export's stage, checked against what its config describes."""

from typing import Any

from contextdiff_jax.encoders.name_map import check_fit
from contextdiff_jax.encoders.tensor_files import check_finite
from contextdiff_jax.training.parameter_names import by_name


def check_weights(weights: Any, abstract: Any, where: str) -> None:
    """Raises ValueError naming parameters that the stage's networks lack, or have otherwise.

    weights: float32 host arrays. abstract: the tree they must be of, boxed or not. where: names the
    stage and its export. A parameter with a value that is NaN or infinite is refused, too.
    """
    found, expected = by_name(weights), by_name(abstract)
    shapes = [{name: leaf.shape for name, leaf in tree.items()} for tree in (expected, found)]
    check_fit(*shapes, where)
    for name, leaf in found.items():
        check_finite(name, leaf, where)
