"""The query: a picture whose structure the drawn one follows, by a control branch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.condition import Batch, Condition, Given, Shapes
from contextdiff_jax.conditions.image_normalization import normalized
from contextdiff_jax.conditions.picture_files import check_path, is_there, read_pictures
from contextdiff_jax.spaces.pixels import from_uint8


@dataclasses.dataclass(frozen=True)
class QueryImage(Condition):
    """A picture file; None is no query, and the branch adds nothing.

    side: of the picture as the branch sees it. floor: of its normalization; 0 leaves it as it is,
    in [-1, 1], or of_unit in [0, 1], as published branches read it.
    """

    name: ClassVar[str] = "query"
    null: ClassVar[Any] = None
    captioned: ClassVar[bool] = False
    droppable: ClassVar[bool] = False  # guidance keeps it, as ControlNet does

    side: int
    floor: float = 0.0
    of_unit: bool = False

    @staticmethod
    def check(value: Any) -> None:
        """Raises ValueError for what is no picture file."""
        check_path(value)

    def collate(self, values: Sequence[str | None], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns "query" (B, side, side, 4) uint8 of files; ValueError for one that is none."""
        paths = [[] if value is None else [value] for value in values]
        return {"query": np.stack([read_pictures(each, 1, self.side)[:, :, 0] for each in paths])}

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        return {"query": jax.ShapeDtypeStruct((batch_size, self.side, self.side, 4), jnp.uint8)}

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns the inputs "hint" (B, side, side, 3) and "hint_present" (B,)."""
        present = is_there(batch["query"])
        hint = from_uint8(batch["query"][..., :3])
        if self.floor:
            hint = normalized(hint, self.floor).pictures
        elif self.of_unit:
            hint = (hint + 1) / 2
        hint = jnp.where(present[:, None, None, None], hint, 0.0)
        return Given(present, inputs={"hint": hint, "hint_present": present})

    def protocol(self) -> dict[str, str]:
        """Says how it is made."""
        if self.floor:
            return {"query": f"normalized, floor {self.floor:g}"}
        return {"query": "in [0, 1]" if self.of_unit else "as it is"}
