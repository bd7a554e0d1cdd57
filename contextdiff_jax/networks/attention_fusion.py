"""Attention of an edit that takes over the source's, without stored maps (Qi et al. 2023).

The source, the edit and the edit without a condition run side by side: rows 0, 1 and 2 of every
frame. What FateZero reads from maps that it stored in inversion is computed again, since the source
row is the inversion's own state at the same time. Only row 1 changes.

  self    (M A_e + (1 - M) A_s) V_e = M attend(q_e, k_e, v_e) + (1 - M) attend(q_s, k_s, v_e), for
          the mask M depends on the query alone: no maps are made, and fused kernels serve.
  cross   A = w eq (alpha (A_s P) + (1 - alpha) A_e) + (1 - w) A_e, by token of the edit's prompt.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from contextdiff_jax.networks.attention_masks import site_mask

SOURCE, EDIT = 0, 1  # rows of a frame

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Fusion:
    """What one step takes over from the source.

    self_on: () bool, whether self-attention does. heat (F, m, n): see attention_masks.word_heat;
    where it is above `threshold` (), of each frame's largest, the edit attends as itself; None
    takes everything over. projection (L, L), alpha, equalizer, weight (L,): P, alpha, eq and w of
    the module, by token of the edit.

    rows: of each frame. side: height and width of the latents. finest: sites whose positions are
    fewer by this factor a side, or more, take over; finer ones are left alone.
    """

    self_on: jax.Array
    heat: jax.Array | None
    threshold: jax.Array
    projection: jax.Array
    alpha: jax.Array
    equalizer: jax.Array
    weight: jax.Array
    rows: int
    side: tuple[int, int]
    finest: int

    def applies(self, queries: int) -> bool:
        """Whether a site of so many positions takes over."""
        return self.finest**2 * queries <= self.side[0] * self.side[1]

    def fused_self(
        self, attend: Attend, query: jax.Array, key: jax.Array, value: jax.Array
    ) -> jax.Array:
        """Returns what all rows attended, (F * rows, Q, heads, D)."""
        attended = self._by_row(attend(query, key, value))
        source_query, source_key = self._by_row(query)[:, SOURCE], self._by_row(key)[:, SOURCE]
        taken = attend(source_query, source_key, self._by_row(value)[:, EDIT])
        own = attended[:, EDIT]
        free = self._free(query.shape[1])[:, :, None, None].astype(own.dtype)
        mixed = free * own + (1 - free) * taken
        fused = attended.at[:, EDIT].set(jnp.where(self.self_on, mixed, own))
        return fused.reshape(query.shape)

    def fused_cross(self, weights: jax.Array) -> jax.Array:
        """Returns the weights (F * rows, heads, Q, L) with those of the edit changed."""
        rows = self._by_row(weights)
        own, source = rows[:, EDIT], rows[:, SOURCE]
        aligned = self.alpha * (source @ self.projection) + (1 - self.alpha) * own
        fused = self.weight * self.equalizer * aligned + (1 - self.weight) * own
        return rows.at[:, EDIT].set(fused).reshape(weights.shape)

    def _by_row(self, x: jax.Array) -> jax.Array:
        return x.reshape(-1, self.rows, *x.shape[1:])

    def _free(self, queries: int) -> jax.Array:
        """Returns M at the positions of a site, float32 (F or 1, Q)."""
        if self.heat is None:
            return jnp.zeros((1, queries))
        factor = round((self.side[0] * self.side[1] / queries) ** 0.5)
        size = self.side[0] // factor, self.side[1] // factor
        mask = site_mask(self.heat, self.threshold, size)
        return mask.reshape(len(mask), queries).astype(jnp.float32)


jax.tree_util.register_dataclass(
    Fusion,
    ["self_on", "heat", "threshold", "projection", "alpha", "equalizer", "weight"],
    ["rows", "side", "finest"],
)
